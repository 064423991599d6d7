"""Writes a coloured triangle mesh as binary glTF 2.0 (GLB).

y is up, the front is on +z, colours are linear, the material is not metallic.
"""
from __future__ import annotations

import json
import struct

import numpy as np
import trimesh

from sds_jax.types import Array

GLTF_FROM_WORLD = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation from the world frame (z up, front on +x) to the frame of glTF (y up, front on +z)."""

# glTF numbers component types and targets as OpenGL does.
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963  # targets of a buffer view
# The letters JSON and BIN, read as little-endian numbers.
_JSON, _BIN = 0x4E4F534A, 0x004E4942


def linear_from_srgb(srgb: Array) -> np.ndarray:
  """Returns the linear intensities of sRGB values (IEC 61966-2-1).

  Both are in [0, 1], of any shape.
  """
  srgb = np.asarray(srgb, np.float64)
  return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def clean(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
  """Returns the mesh without duplicate vertices and without faces of no area.

  Vertices at equal positions are duplicates.
  """
  # In float32, the precision of the file, where vertices closer than a rounding become equal.
  vertices, first, index = np.unique(np.asarray(mesh.vertices, np.float32), axis=0, return_index=True,
                                     return_inverse=True)
  # Flattened: NumPy 2.0 gives the inverse another shape than other versions do.
  faces = index.reshape(-1)[mesh.faces]
  a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
  faces = faces[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0.0]
  used, flat = np.unique(faces, return_inverse=True)
  return trimesh.Trimesh(vertices[used], flat.reshape(-1, 3), process=False,
                         vertex_colors=mesh.visual.vertex_colors[first[used]])


def glb_bytes(mesh: trimesh.Trimesh, name: str = "object") -> bytes:
  """Returns a GLB file with one node, one mesh and one material.

  Positions are in metres, where a world unit is a metre. Colours at the vertices are linear, as glTF 2.0 (section
  3.7.2.1) asks: 16 bits a channel, because 8 linear bits band in the dark. The material has a metallic factor of 0,
  because a primitive without a material is bare metal to viewers.

  Args:
    mesh: in the world frame (z up, front on +x), with sRGB colours at the vertices.
    name: of node and mesh.
  """
  mesh = clean(mesh)
  colours = linear_from_srgb(mesh.visual.vertex_colors[:, :3] / 255.0)
  rgba = np.concatenate([colours, np.ones((len(colours), 1))], axis=1)  # a fourth channel aligns a vertex to 4 bytes
  accessors, views, blob = [], [], bytearray()

  def add(array, component, kind, target, **facts):
    # glTF demands min and max of positions and allows them elsewhere.
    bounds = array.reshape(len(array), -1)
    views.append(dict(buffer=0, byteOffset=len(blob), byteLength=array.nbytes, target=target))
    accessors.append(dict(bufferView=len(views) - 1, componentType=component, count=len(array), type=kind,
                          min=bounds.min(axis=0).tolist(), max=bounds.max(axis=0).tolist(), **facts))
    blob.extend(array.tobytes())
    return len(accessors) - 1

  to_gltf = lambda vectors: np.ascontiguousarray(np.asarray(vectors) @ GLTF_FROM_WORLD.T, "<f4")  # noqa: E731
  normals = to_gltf(mesh.vertex_normals)
  # glTF demands unit length, and rounding to float32 has changed it. The floor avoids NaN where faces cancel.
  normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
  attributes = dict(
      POSITION=add(to_gltf(mesh.vertices), _FLOAT, "VEC3", _VERTICES),
      NORMAL=add(normals, _FLOAT, "VEC3", _VERTICES),
      COLOR_0=add(np.rint(rgba * 65535).astype("<u2"), _UINT16, "VEC4", _VERTICES, normalized=True))
  indices = add(mesh.faces.reshape(-1).astype("<u4"), _UINT32, "SCALAR", _INDICES)
  content = dict(
      asset=dict(version="2.0", generator="sds_jax"), scene=0, scenes=[dict(nodes=[0])],
      nodes=[dict(mesh=0, name=name)],
      meshes=[dict(name=name, primitives=[dict(attributes=attributes, indices=indices, material=0, mode=4)])],
      materials=[dict(name="albedo", pbrMetallicRoughness=dict(
          baseColorFactor=[1.0, 1.0, 1.0, 1.0], metallicFactor=0.0, roughnessFactor=1.0))],
      accessors=accessors, bufferViews=views, buffers=[dict(byteLength=len(blob))])
  text = json.dumps(content, separators=(",", ":")).encode()
  # Chunks have multiples of 4 bytes: JSON is padded by spaces, binary data by zeros (section 4.4.3).
  text += b" " * (-len(text) % 4)
  blob.extend(b"\0" * (-len(blob) % 4))
  chunks = b"".join(struct.pack("<II", len(data), kind) + data for data, kind in ((text, _JSON), (bytes(blob), _BIN)))
  return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
