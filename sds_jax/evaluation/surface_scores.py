"""Scores of a finished mesh against the exact surface of a ShapeWorld scene.

The mesh is the one that is exported, seen from all sides, below included.
"""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from sds_jax.io.mesh import in_chunks
from sds_jax.shapeworld import captions, scenes
from sds_jax.types import Array

GRID = 128
"""Grid points a side for the triangles of an exact surface."""
SAMPLES = 20_000
"""Points drawn on either surface."""
LONGEST_EDGE = 0.03
"""Longest edge of a triangle when nearest points are searched, world units."""
_NEIGHBOURS = 4
"""Vertices next to a point whose triangles may hold the nearest point of the surface."""


def surface_scores(mesh: trimesh.Trimesh, spec: captions.Spec, angle: float = 0.0) -> dict[str, float]:
  """Returns the scores of a mesh.

  Args:
    mesh: in the world frame, turned by `angle` against the scene of the caption.
    spec: the caption.
    angle: radians about z.

  Returns:
    A dictionary. `chamfer` is the mean distance between the two surfaces, over both directions, as a share of the exact
    object's size, which is the longest side of its bounding box. `normal_error_deg` and `normal_error_p90_deg` are mean
    and 90th percentile of the angle between the normals of the mesh and those of the nearest points of the exact
    surface. `volume_error` is the relative difference of the volumes, positive for a mesh too large; of a closed mesh
    only. `below_base` is the depth of the mesh's lowest point below the exact lowest point, world units.
  """
  exact = exact_mesh(spec)
  turned = np.asarray(scenes.rotate_points_z(jnp.asarray(mesh.vertices, jnp.float32), -angle), np.float64)
  mesh = trimesh.Trimesh(turned, mesh.faces, process=False)
  points, own = draw(mesh, 0)
  forth, normals = nearest(points, exact)
  back, _ = nearest(draw(exact, 1)[0], mesh)
  angles = np.degrees(np.arccos(np.clip(np.sum(own * normals, axis=1), -1.0, 1.0)))
  return dict(
      chamfer=float((forth.mean() + back.mean()) / 2.0 / exact.extents.max()),
      normal_error_deg=float(angles.mean()), normal_error_p90_deg=float(np.percentile(angles, 90)),
      volume_error=float(mesh.volume / exact.volume - 1.0),
      below_base=float(exact.bounds[0, 2] - mesh.bounds[0, 2]))


@functools.lru_cache(maxsize=64)
def exact_mesh(spec: captions.Spec) -> trimesh.Trimesh:
  """Returns a fine mesh of the exact surface of a caption's scene."""
  scene, bound = scenes.scene_from_spec(spec), scenes.SCENE_RADIUS
  axis = np.linspace(-bound, bound, GRID, dtype=np.float32)
  points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
  field = in_chunks(lambda p: np.asarray(_distance(scene, p)), points).reshape(GRID, GRID, GRID)
  vertices, faces, _, _ = marching_cubes(field, 0.0, method="lorensen", gradient_direction="descent")
  vertices = vertices * (2.0 * bound / (GRID - 1)) - bound
  # Interpolation between grid points rounds edges off; a step along the gradient puts the vertices onto the surface.
  for _ in range(2):
    vertices = in_chunks(lambda p: np.asarray(_projected(scene, p)), vertices.astype(np.float32))
  return trimesh.Trimesh(vertices.astype(np.float64), faces, process=False)


@jax.jit
def _distance(scene: scenes.SolidScene, points: Array) -> Array:
  return scenes.distance(scene, *points.T)


@jax.jit
def _projected(scene: scenes.SolidScene, points: Array) -> Array:
  """Returns the points [N, 3] moved onto the surface, to first order; the gradient is taken by differences."""
  step = 1e-3
  gradient = jnp.stack([
      _distance(scene, points + step * axis) - _distance(scene, points - step * axis) for axis in jnp.eye(3)[:, None]],
      axis=-1) / (2.0 * step)
  square = jnp.maximum(jnp.sum(gradient ** 2, axis=-1), 0.25)  # not unit length across an edge
  return points - (_distance(scene, points) / square)[:, None] * gradient


def draw(mesh: trimesh.Trimesh, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns SAMPLES points drawn evenly over a mesh, and their normals, interpolated between the vertices."""
  rng = np.random.default_rng(seed)
  area = mesh.area_faces
  face = rng.choice(len(area), SAMPLES, p=area / area.sum())
  root, second = np.sqrt(rng.random(SAMPLES)), rng.random(SAMPLES)
  weights = np.stack([1.0 - root, root * (1.0 - second), root * second], axis=1)  # even within a triangle
  return np.einsum("nk,nkc->nc", weights, mesh.triangles[face]), _normals(mesh, face, weights)


def nearest(points: np.ndarray, mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distances [N] of points [N, 3] to a mesh, and its normals [N, 3] at the nearest points.

  The triangles around the nearest vertices are compared by exact distances, after large triangles are divided: next to
  a large one the nearest vertices may belong to others.
  """
  vertices, faces, whole = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, LONGEST_EDGE, max_iter=20,
                                                            return_index=True)
  fine = trimesh.Trimesh(vertices, faces, process=False)
  _, index = cKDTree(vertices).query(points, _NEIGHBOURS)
  near = fine.vertex_faces[index].reshape(len(points), -1)  # -1 where a vertex has fewer triangles
  near = np.where(near < 0, near.max(axis=1, keepdims=True), near)
  repeated = np.repeat(points, near.shape[1], axis=0)
  closest = trimesh.triangles.closest_point(fine.triangles[near.reshape(-1)], repeated)
  distance = np.linalg.norm(closest - repeated, axis=1).reshape(near.shape)
  best, rows = distance.argmin(axis=1), np.arange(len(points))
  face = whole[near[rows, best]]
  weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], closest.reshape(*near.shape, 3)[rows, best])
  return distance[rows, best], _normals(mesh, face, weights)


def _normals(mesh: trimesh.Trimesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns the normals [N, 3] at points given by faces [N] and barycentric coordinates [N, 3]."""
  normals = np.einsum("nk,nkc->nc", weights, mesh.vertex_normals[mesh.faces[face]])
  return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
