"""Finishes an extracted mesh: fewer faces, a texture, and files for other programs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh

from sds_jax.io import mesh_files, surface, texture
from sds_jax.io.mesh import PointFn, in_chunks
from sds_jax.io.simplify import is_closed, relax, simplify
from sds_jax.io.surface import Surface


def write_asset(mesh: trimesh.Trimesh, colour_fn: PointFn, folder: Path, faces: int = 20_000, texture_size: int = 1024,
                formats: Sequence[str] = ("glb", "obj"), scale: float = 1.0,
                inset: float = 0.0) -> tuple[list[Path], str]:
  """Writes the files of a mesh into `folder`; returns their paths and one line that describes the asset.

  Args:
    mesh: in the world frame; its own colours are not used.
    colour_fn: points [N, 3] -> colours [N, 3] in [0, 1] as displayed; called with N = mesh.CHUNK always.
    folder: of the files.
    faces: a mesh of more faces is simplified to about this number; 0 keeps all.
    texture_size: width and height of the texture; 0 puts colours at the vertices.
    formats: names of `mesh_files.FORMATS`.
    scale: length of a world unit in the files.
    inset: depth below the surface at which colours are read, world units.
  """
  colours = lambda points: in_chunks(colour_fn, points)  # noqa: E731
  mesh = finished(mesh, faces)
  asset, look = None, ""
  if texture_size and set(formats) & set(mesh_files.WITH_TEXTURE):
    try:
      asset = texture.textured(mesh, colours, texture_size, inset)
      look = (f"texture of {texture_size} px, {texture.psnr(asset, colours, inset):.1f} dB against the field's colours")
    except texture.TextureError as error:
      look = f"colours at the vertices: {error}"
  asset, look = asset or coloured(mesh, colours, inset), look or "colours at the vertices"
  closed = "closed" if is_closed(mesh) else "not closed"
  paths = mesh_files.write_mesh(asset, folder, formats, scale)
  return paths, f"mesh: {len(asset.faces):,} faces, {closed}; {look}"


def finished(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
  """Returns the mesh for the files: with even triangles, and of about `faces` faces unless `faces` is 0."""
  mesh = relax(surface.clean(mesh))
  return surface.clean(simplify(mesh, faces)) if faces else mesh


def coloured(mesh: trimesh.Trimesh, colour_fn: PointFn, inset: float = 0.0) -> Surface:
  """Returns the surface of a mesh with the field's colours at its vertices."""
  points = np.asarray(mesh.vertices - inset * mesh.vertex_normals, np.float32)
  return surface.with_vertex_colours(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False,
                                                     vertex_colors=surface.displayed(colour_fn(points))))
