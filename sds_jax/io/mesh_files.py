"""Writes a surface as mesh.glb, mesh.obj with its material and texture, mesh.ply and mesh.stl."""
from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from sds_jax.io import gltf
from sds_jax.io.files import atomic_write
from sds_jax.io.surface import Surface

Files = dict[str, bytes]
"""Names of files -> their contents."""


def write_mesh(surface: Surface, folder: str | os.PathLike, formats: Sequence[str] = ("glb", "obj"),
               scale: float = 1.0) -> list[Path]:
  """Writes mesh.FORMAT for each format, each file whole or not at all; returns the paths.

  The GLB file follows glTF 2.0: metres, y up, front on +z, linear colours or a texture (see `gltf.glb_bytes`). The
  other files keep the world frame, z up and front on +x, as printers' programs expect, and have sRGB colours. STL has
  no colours. PLY has colours at the vertices, read from the texture where there is one.

  Args:
    surface: the surface.
    folder: of the files.
    formats: names of FORMATS.
    scale: length of a world unit in the files.
  """
  contents: Files = {}
  for kind in formats:
    contents |= FORMATS[kind](surface, scale)
  for name, content in contents.items():
    with atomic_write(Path(folder) / name) as file:
      file.write(content)
  return [Path(folder) / name for name in contents]


def png_bytes(image: np.ndarray) -> bytes:
  """Returns an image [H, W, 3] uint8 as a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "png")
  return buffer.getvalue()


def _glb(surface: Surface, scale: float) -> Files:
  png = b"" if surface.texture is None else png_bytes(surface.texture)
  return {"mesh.glb": gltf.glb_bytes(surface, png, scale)}


def _obj(surface: Surface, scale: float) -> Files:
  """Returns the OBJ file, its material and the texture.

  The material of a surface without a texture is white, for programs that multiply it with the vertices' colours.
  """
  lines = ["# z up, front on +x, colours sRGB", "mtllib mesh.mtl"]
  # Positions once each, so that programs see one closed surface and not the charts of the texture.
  unique, first, position = np.unique(surface.vertices, axis=0, return_index=True, return_inverse=True)
  position = position.reshape(-1)[surface.faces] + 1  # OBJ counts from 1
  own = surface.faces + 1
  vertices = (scale * unique).tolist()
  if surface.uv is None:
    lines += ["v {:.9g} {:.9g} {:.9g} {:.4f} {:.4f} {:.4f}".format(*v, *c)
              for v, c in zip(vertices, (surface.colours[first] / 255.0).tolist())]
  else:
    lines += ["v {:.9g} {:.9g} {:.9g}".format(*v) for v in vertices]
    # v points up in OBJ files.
    lines += [f"vt {u:.6f} {1.0 - v:.6f}" for u, v in surface.uv.tolist()]
  lines += ["vn {:.4f} {:.4f} {:.4f}".format(*n) for n in surface.normals.tolist()]
  corner = "{0}//{1}" if surface.uv is None else "{0}/{1}/{1}"
  lines += ["usemtl albedo"]
  lines += ["f " + " ".join(map(corner.format, at, face)) for at, face in zip(position.tolist(), own.tolist())]
  material = "newmtl albedo\nKd 1 1 1\nKs 0 0 0\nillum 1\n"
  files = {"mesh.obj": "\n".join(lines).encode() + b"\n", "mesh.mtl": material.encode()}
  if surface.texture is not None:
    files["mesh.mtl"] += b"map_Kd mesh.png\n"
    files["mesh.png"] = png_bytes(surface.texture)
  return files


def _solid(surface: Surface, scale: float) -> trimesh.Trimesh:
  """Returns the surface without seams, with colours at the vertices."""
  colours = surface.colours
  if surface.texture is not None:
    from sds_jax.io import texture
    colours = np.rint(texture.sample(surface.texture, surface.uv) * 255.0).astype(np.uint8)
  vertices, first, index = np.unique(surface.vertices, axis=0, return_index=True, return_inverse=True)
  return trimesh.Trimesh(scale * vertices, index.reshape(-1)[surface.faces], process=False,
                         vertex_colors=colours[first], vertex_normals=surface.normals[first])


def _ply(surface: Surface, scale: float) -> Files:
  return {"mesh.ply": trimesh.exchange.ply.export_ply(_solid(surface, scale), vertex_normal=True)}


def _stl(surface: Surface, scale: float) -> Files:
  return {"mesh.stl": trimesh.exchange.stl.export_stl(_solid(surface, scale))}


FORMATS: dict[str, Callable[[Surface, float], Files]] = dict(glb=_glb, obj=_obj, ply=_ply, stl=_stl)
"""Writers by the suffix of their file."""

WITH_TEXTURE = ("glb", "obj")
"""Formats that hold a texture."""
