"""Writes a surface as binary glTF 2.0 (GLB).

y is up, the front is on +z, colours are linear or in an sRGB texture, the material is not metallic.
"""
from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from sds_jax.io.surface import Surface
from sds_jax.types import Array

GLTF_FROM_WORLD = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation from the world frame (z up, front on +x) to the frame of glTF (y up, front on +z)."""

# glTF numbers component types, targets, filters and wrapping as OpenGL does.
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963  # targets of a buffer view
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071
# The letters JSON and BIN, read as little-endian numbers.
_JSON, _BIN = 0x4E4F534A, 0x004E4942


def linear_from_srgb(srgb: Array) -> np.ndarray:
  """Returns the linear intensities of sRGB values (IEC 61966-2-1).

  Both are in [0, 1], of any shape.
  """
  srgb = np.asarray(srgb, np.float64)
  return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


class _Buffer:
  """The binary chunk of a file, with the tables of its parts."""

  def __init__(self):
    self.data, self.views, self.accessors = bytearray(), [], []

  def add_bytes(self, data: bytes, **facts: int) -> int:
    """Adds data at a multiple of 4 bytes; returns the number of its view."""
    self.data.extend(b"\0" * (-len(self.data) % 4))
    self.views.append(dict(buffer=0, byteOffset=len(self.data), byteLength=len(data), **facts))
    self.data.extend(data)
    return len(self.views) - 1

  def add(self, array: np.ndarray, component: int, kind: str, target: int, **facts: Any) -> int:
    """Adds an array; returns the number of its accessor."""
    # glTF demands min and max of positions and allows them elsewhere.
    bounds = array.reshape(len(array), -1)
    self.accessors.append(dict(
        bufferView=self.add_bytes(array.tobytes(), target=target), componentType=component, count=len(array), type=kind,
        min=bounds.min(axis=0).tolist(), max=bounds.max(axis=0).tolist(), **facts))
    return len(self.accessors) - 1


def glb_bytes(surface: Surface, png: bytes = b"", scale: float = 1.0, name: str = "object") -> bytes:
  """Returns a GLB file with one node, one mesh and one material.

  Positions are in metres. Colours at the vertices are linear, as glTF 2.0 (section 3.7.2.1) asks: 16 bits a channel,
  because 8 linear bits band in the dark. A texture is sRGB (section 3.9.2). The material has a metallic factor of 0,
  because a primitive without a material is bare metal to viewers.

  Args:
    surface: in the world frame.
    png: the surface's texture as a PNG file, if it has one.
    scale: metres of a world unit.
    name: of node and mesh.
  """
  buffer = _Buffer()
  to_gltf = lambda vectors: np.ascontiguousarray(np.asarray(vectors) @ GLTF_FROM_WORLD.T, "<f4")  # noqa: E731
  normals = to_gltf(surface.normals)
  # glTF demands unit length, and rounding to float32 has changed it.
  normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
  attributes = dict(POSITION=buffer.add(to_gltf(scale * surface.vertices), _FLOAT, "VEC3", _VERTICES),
                    NORMAL=buffer.add(normals, _FLOAT, "VEC3", _VERTICES))
  material: dict[str, Any] = dict(metallicFactor=0.0, roughnessFactor=1.0)
  extra: dict[str, Any] = {}
  if surface.uv is None:
    rgba = np.ones((len(surface.vertices), 4))  # a fourth channel aligns a vertex to 4 bytes
    rgba[:, :3] = linear_from_srgb(surface.colours / 255.0)
    attributes["COLOR_0"] = buffer.add(np.rint(rgba * 65535).astype("<u2"), _UINT16, "VEC4", _VERTICES, normalized=True)
  else:
    attributes["TEXCOORD_0"] = buffer.add(np.ascontiguousarray(surface.uv, "<f4"), _FLOAT, "VEC2", _VERTICES)
    material["baseColorTexture"] = dict(index=0)
    extra = dict(
        images=[dict(bufferView=buffer.add_bytes(png), mimeType="image/png", name="albedo")],
        samplers=[dict(magFilter=_LINEAR, minFilter=_LINEAR_MIPMAP_LINEAR, wrapS=_CLAMP, wrapT=_CLAMP)],
        textures=[dict(source=0, sampler=0)])
  indices = buffer.add(surface.faces.reshape(-1).astype("<u4"), _UINT32, "SCALAR", _INDICES)
  content = dict(
      asset=dict(version="2.0", generator="sds_jax"), scene=0, scenes=[dict(nodes=[0])],
      nodes=[dict(mesh=0, name=name)],
      meshes=[dict(name=name, primitives=[dict(attributes=attributes, indices=indices, material=0, mode=4)])],
      materials=[dict(name="albedo", pbrMetallicRoughness=material)], **extra,
      accessors=buffer.accessors, bufferViews=buffer.views, buffers=[dict(byteLength=len(buffer.data))])
  return _container(json.dumps(content, separators=(",", ":")).encode(), bytes(buffer.data))


def _container(text: bytes, data: bytes) -> bytes:
  """Returns the file of a JSON chunk and a binary chunk."""
  # Chunks have multiples of 4 bytes: JSON is padded by spaces, binary data by zeros (section 4.4.3).
  text += b" " * (-len(text) % 4)
  data += b"\0" * (-len(data) % 4)
  chunks = b"".join(struct.pack("<II", len(chunk), kind) + chunk for chunk, kind in ((text, _JSON), (data, _BIN)))
  return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
