"""Turns a density field into a coloured, watertight mesh."""
from __future__ import annotations

import math
from typing import Callable

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

PointFn = Callable[[np.ndarray], np.ndarray]
"""points [N, 3] float32 in world units -> [N] densities or [N, 3] colours; N is the same at every call."""

CHUNK = 65536
AUTO_DEPTH = 1.0 / 4.0
"""The `auto` threshold asks for half opacity within this fraction of `bound`. Fields of a short run are soft: a thinner
wall would put the surface far inside of the rendered silhouette."""


def extract_mesh(density_fn: PointFn, colour_fn: PointFn, resolution: int = 128, bound: float = 0.8,
                 threshold: float | str = "auto", min_part: float = 0.02, chunk: int = CHUNK) -> trimesh.Trimesh:
  """Extracts the coloured surface density = threshold, in the world frame (z up).

  The surface is within the cube [-bound, bound]^3.

  The mesh is watertight and its faces point outwards. The surface is found on the opacity 1 - 2^(-density / threshold),
  whose level is 1/2: the level set is the same, but linear interpolation between grid points stays fair when a density
  jumps from 0 to thousands. Parts of less than `min_part` of the largest part's volume are floaters and are removed;
  so are closed cavities.

  Args:
    density_fn: [N, 3] -> [N], called with N = chunk always, so that a jitted function compiles once.
    colour_fn: [N, 3] -> [N, 3] in [0, 1] as displayed (sRGB); evaluated half a voxel inside the surface.
    resolution: grid points a side. The grids take resolution^3 * 8 bytes of memory, the surface takes its own.
    threshold: density per world unit, or "auto" (see `auto_threshold`).

  Raises:
    ValueError: nothing above the threshold, everything above it, or densities that are not finite.
  """
  density = grid_density(density_fn, resolution, bound, chunk)
  if threshold == "auto":
    threshold = auto_threshold(density, bound)
  level = float(threshold)
  if not level > 0.0:
    raise ValueError(f"threshold must be a density > 0 or 'auto', got {threshold!r}")
  _check_level(density, level)
  opacity = _padded_opacity(density, level)
  del density  # marching cubes needs memory of its own
  # Lewiner's variant leaves holes where opacities are 0 and 1 only or hit the level; Lorensen's never does.
  vertices, faces, _, _ = marching_cubes(opacity, 0.5, method="lorensen", gradient_direction="ascent")
  del opacity
  voxel = 2.0 * bound / (resolution - 1)
  # Minus 1, because the shell of zeros has moved all indices by one.
  vertices = (vertices.astype(np.float64) - 1.0) * voxel - bound
  # process=False keeps trimesh from merging and reordering vertices.
  mesh = trimesh.Trimesh(vertices, faces.astype(np.int64), process=False)
  mesh = remove_floaters(mesh, min_part)
  inside = np.asarray(mesh.vertices - 0.5 * voxel * mesh.vertex_normals, np.float32)
  colours = np.clip(np.nan_to_num(in_chunks(colour_fn, inside, chunk)), 0.0, 1.0)
  rgba = np.concatenate([np.rint(colours * 255.0), np.full((len(inside), 1), 255.0)], axis=1).astype(np.uint8)
  mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=rgba)
  return mesh


def grid_density(density_fn: PointFn, resolution: int, bound: float, chunk: int = CHUNK) -> np.ndarray:
  """Computes densities on the grid over [-bound, bound]^3, ends included.

  Returns [resolution] * 3 (axes x, y, z; float32).

  Raises:
    ValueError: where any density is NaN or infinite.
  """
  if resolution < 2:
    raise ValueError(f"resolution is the number of grid points a side, at least 2, got {resolution}")
  shape = (resolution,) * 3
  axis = np.linspace(-bound, bound, resolution, dtype=np.float32)
  density = np.empty(resolution ** 3, np.float32)
  for start in range(0, len(density), chunk):  # the points of the whole grid would take three times its memory
    stop = min(start + chunk, len(density))
    points = np.stack([axis[i] for i in np.unravel_index(np.arange(start, stop), shape)], axis=-1)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported below
      density[start:stop] = in_chunks(density_fn, points, chunk)
  if not np.isfinite(density).all():
    raise ValueError("the field has densities that are NaN or infinite: the run diverged; lower the learning rate or "
                     "resume from an earlier checkpoint")
  return density.reshape(shape)


def in_chunks(fn: PointFn, points: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
  """Evaluates fn over points [N, 3], `chunk` rows a call.

  Zeros fill up the last call, so fn sees one shape only.
  """
  outputs = []
  for start in range(0, len(points), chunk):
    part = points[start:start + chunk]
    filled = np.pad(part, ((0, chunk - len(part)), (0, 0)))
    outputs.append(np.asarray(fn(filled))[:len(part)])
  return np.concatenate(outputs)


def _padded_opacity(density: np.ndarray, level: float) -> np.ndarray:
  """Returns the opacity 1 - 2^(-density / level) in a shell of zeros.

  [resolution + 2] * 3, float32. The shell closes the surface.
  """
  opacity = np.zeros([size + 2 for size in density.shape], np.float32)
  for slab, result in zip(density, opacity[1:-1, 1:-1, 1:-1]):  # float64 a slab at a time, to save memory
    result[...] = 1.0 - np.exp2(-slab.astype(np.float64) / level)
  return opacity


def auto_threshold(density: np.ndarray, bound: float) -> float:
  """Returns the density at which a wall of thickness L is half opaque.

  L is AUTO_DEPTH * bound, and 1 - exp(-density L) = 1/2.

  The threshold does not depend on the grid, so a finer grid gives the same surface. A soft field that never reaches the
  threshold, yet looks solid because it is thick, gets half of its greatest density instead.

  Raises:
    ValueError: even the whole cube filled with the greatest density would be less than half opaque (an empty field).
  """
  highest = float(density.max())
  # 1 - exp(-density L) = 1/2 at density L = log 2, where L = 2 bound crosses the whole cube.
  if highest * 2.0 * bound < math.log(2.0):
    raise ValueError(f"the field is empty: its greatest density is {highest:.3g}, too thin to see; train longer, "
                     "raise the guidance or the initial blob's density, or pass a threshold below that density")
  return min(math.log(2.0) / (AUTO_DEPTH * bound), 0.5 * highest)


def remove_floaters(mesh: trimesh.Trimesh, min_part: float = 0.02) -> trimesh.Trimesh:
  """Keeps the connected parts with signed volume >= `min_part` of the largest.

  Cavities, whose volume is negative, are dropped.
  """
  faces = mesh.faces
  count = len(mesh.vertices)
  edges = np.concatenate([faces[:, :2], faces[:, 1:]])
  graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
  parts, part_of_vertex = connected_components(graph, directed=False)
  # All vertices of a face are in one part, so the first tells the face's.
  part_of_face = part_of_vertex[faces[:, 0]]
  a, b, c = np.moveaxis(mesh.vertices[faces], 1, 0)
  tetrahedra = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0  # signed; their sum is the enclosed volume
  volumes = np.bincount(part_of_face, tetrahedra, minlength=parts)
  keep = faces[(volumes >= min_part * volumes.max())[part_of_face]]
  used, flat = np.unique(keep, return_inverse=True)
  return trimesh.Trimesh(mesh.vertices[used], flat.reshape(-1, 3), process=False)


def _check_level(density: np.ndarray, level: float) -> None:
  low, high = float(density.min()), float(density.max())
  if high <= level:
    raise ValueError(f"nothing in the field is denser than threshold={level:.4g} (the greatest density is {high:.4g}): "
                     f"the object is empty or soft; try threshold={0.5 * high:.4g} or 'auto', or train longer")
  if low >= level:
    raise ValueError(f"the whole cube is denser than threshold={level:.4g} (the least density is {low:.4g}): the "
                     "object has no surface; raise the threshold or the bound, or restart with a smaller blob")
