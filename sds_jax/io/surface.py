"""A finished surface as files hold it: triangles with normals, and colours at the vertices or in a texture."""
from __future__ import annotations

import dataclasses

import numpy as np
import trimesh


@dataclasses.dataclass(frozen=True)
class Surface:
  """Triangles in the world frame (z up, front on +x), with colours as displayed (sRGB).

  A vertex on a seam of the texture is stored twice, once for each side.

  Attributes:
    vertices: [V, 3] float32, world units.
    normals: [V, 3] float32 of unit length, outwards.
    faces: [F, 3] int64, counter-clockwise seen from outside.
    colours: [V, 3] uint8; None with a texture.
    uv: [V, 2] float32 in [0, 1], u to the right and v down in the texture; None without one.
    texture: [S, S, 3] uint8; None without one.
  """
  vertices: np.ndarray
  normals: np.ndarray
  faces: np.ndarray
  colours: np.ndarray | None = None
  uv: np.ndarray | None = None
  texture: np.ndarray | None = None


def with_vertex_colours(mesh: trimesh.Trimesh) -> Surface:
  """Returns the surface of a mesh that has colours at its vertices, without duplicate vertices and empty faces."""
  mesh = clean(mesh)
  return Surface(np.asarray(mesh.vertices, np.float32), unit_normals(mesh), mesh.faces,
                 colours=mesh.visual.vertex_colors[:, :3])


def displayed(colours: np.ndarray) -> np.ndarray:
  """Returns colours [N, 3] in [0, 1] as uint8; NaN becomes black."""
  return np.rint(np.clip(np.nan_to_num(colours), 0.0, 1.0) * 255.0).astype(np.uint8)


def unit_normals(mesh: trimesh.Trimesh) -> np.ndarray:
  """Returns the normals at the vertices [V, 3], float32 of unit length."""
  normals = np.array(mesh.vertex_normals, np.float32)
  # The floor avoids NaN where the normals of the faces cancel.
  return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def clean(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
  """Returns the mesh without duplicate vertices and without faces of no area.

  Vertices at equal positions are duplicates.
  """
  # In float32, the precision of the files, where vertices closer than a rounding become equal.
  vertices, first, index = np.unique(np.asarray(mesh.vertices, np.float32), axis=0, return_index=True,
                                     return_inverse=True)
  # Flattened: NumPy 2.0 gives the inverse another shape than other versions do.
  faces = index.reshape(-1)[mesh.faces]
  a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
  faces = faces[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0.0]
  used, flat = np.unique(faces, return_inverse=True)
  return trimesh.Trimesh(vertices[used], flat.reshape(-1, 3), process=False,
                         vertex_colors=mesh.visual.vertex_colors[first[used]])
