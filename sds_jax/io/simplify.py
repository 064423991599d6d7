"""Evens out the triangles of a mesh, and reduces their number."""
from __future__ import annotations

import fast_simplification
import numpy as np
import trimesh
from scipy import sparse

_GROWTH = 1.5
"""Factor for the number of faces after an attempt that has opened the mesh or lost a part of it."""


def relax(mesh: trimesh.Trimesh, rounds: int = 5, rate: float = 0.5) -> trimesh.Trimesh:
  """Returns the mesh with its vertices moved within the surface, towards the middle of their neighbours.

  Marching cubes leaves slivers where the surface passes close to a grid point: up to 7% of the faces have an angle
  below 5 degrees, and they shade badly. Five rounds leave none. Edges may move by part of a voxel, the
  rest of the surface hardly: the move is the tangential part of the umbrella operator (Taubin 1995).

  Args:
    mesh: of any shape; the result has the same faces, and no colours.
    rounds: number of moves of all vertices.
    rate: share of the way to the middle in a round.
  """
  edges, count = mesh.edges_unique, len(mesh.vertices)
  half = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
  neighbours = (half + half.T).tocsr()
  number = np.maximum(np.asarray(neighbours.sum(axis=1)), 1.0)
  for _ in range(rounds):
    move = neighbours @ mesh.vertices / number - mesh.vertices
    normals = mesh.vertex_normals
    move -= normals * np.sum(move * normals, axis=1, keepdims=True)
    mesh = trimesh.Trimesh(mesh.vertices + rate * move, mesh.faces, process=False)
  return mesh


def simplify(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
  """Returns a mesh of about `faces` faces without colours, or the mesh itself if it has no more.

  Edges collapse in the order of their quadric errors (Garland and Heckbert 1997).
  A closed mesh stays closed and keeps its parts: more faces are kept where fewer would open it or lose one.

  Args:
    mesh: of any number of faces.
    faces: the aim; edges that collapse take two faces away, so the result may have one less.
  """
  closed, parts = is_closed(mesh), mesh.body_count if faces < len(mesh.faces) else 0
  while faces < len(mesh.faces):
    vertices, triangles = fast_simplification.simplify(
        np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32), target_count=faces)
    smaller = trimesh.Trimesh(np.asarray(vertices, np.float64), np.asarray(triangles, np.int64), process=False)
    if len(smaller.faces) and (not closed or is_closed(smaller) and smaller.body_count == parts):
      return smaller
    faces = max(faces + 1, int(faces * _GROWTH))
  return mesh


def is_closed(mesh: trimesh.Trimesh) -> bool:
  """Returns whether a mesh encloses a volume: watertight, of one orientation, with faces that look outwards."""
  return bool(len(mesh.faces) and mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0.0)
