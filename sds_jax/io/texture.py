"""Gives a mesh a texture: charts by xatlas, and the colour of every texel from a colour field.

A texel takes the colour of its own point of the surface, so the texture is as fine as its size allows, however few
vertices the mesh has.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import trimesh
from scipy import ndimage

from sds_jax.io import surface
from sds_jax.io.surface import Surface

PointFn = Callable[[np.ndarray], np.ndarray]
"""points [N, 3] float32, world units -> colours [N, 3] in [0, 1] as displayed."""

PADDING = 4
"""Texels between charts, so that no filter of a viewer mixes the colours of two charts."""


LEAST_CHARTS = 30
"""A chart has at most this part of the surface."""


class Charts(NamedTuple):
  """A mesh cut into charts that lie flat in the texture.

  Attributes:
    index: [V] int64, the vertex of the mesh that each vertex of the charts is.
    faces: [F, 3] int64 into the vertices of the charts, in the order of the mesh's faces.
    uv: [V, 2] float32 in [0, 1], u to the right and v down.
  """
  index: np.ndarray
  faces: np.ndarray
  uv: np.ndarray


def is_installed() -> bool:
  """Returns whether xatlas, of the extra `texture`, is installed."""
  return importlib.util.find_spec("xatlas") is not None


def textured(mesh: trimesh.Trimesh, colour_fn: PointFn, size: int, inset: float = 0.0) -> Surface:
  """Returns the surface of a mesh with a texture [size, size, 3].

  Args:
    mesh: in the world frame; its own colours are not used.
    colour_fn: points [N, 3] -> colours [N, 3].
    size: width and height of the texture.
    inset: depth below the surface at which colours are read, world units.

  Raises:
    ImportError: xatlas is not installed.
  """
  mesh = surface.clean(mesh)
  normals = surface.unit_normals(mesh)
  vertices = np.asarray(mesh.vertices, np.float32)
  charts = cut(vertices, mesh.faces, normals, size)
  # Positions and normals are interpolated alike, so a texel is read right below its own point of the surface.
  below = (vertices - inset * normals)[charts.index]
  covered, points = texel_points(charts, below, size)
  return Surface(vertices[charts.index], normals[charts.index], charts.faces, uv=charts.uv,
                 texture=paint(covered, colour_fn(points.astype(np.float32))))


def cut(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, size: int) -> Charts:
  """Returns the charts of a mesh, packed into a square texture of `size` texels a side."""
  import xatlas  # an extra
  atlas = xatlas.Atlas()
  atlas.add_mesh(vertices, faces.astype(np.uint32), normals)
  charting = xatlas.ChartOptions()
  # The time grows with the square of a chart's faces: of 20,000 faces in 10 charts 13 s, in 50 charts 2 s.
  charting.max_chart_area = float(_area(vertices, faces).sum()) / LEAST_CHARTS
  packing = xatlas.PackOptions()
  packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
  atlas.generate(charting, packing)
  index, triangles, uv = atlas[0]
  # xatlas packs into a rectangle of about size x size texels; a square of its longer side keeps all texels square.
  scale = np.array([atlas.width, atlas.height], np.float32) / max(atlas.width, atlas.height)
  return Charts(index.astype(np.int64), triangles.astype(np.int64), uv * scale)


def _area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Returns the areas of the faces [F], float64."""
  a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
  return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2.0


def texel_points(charts: Charts, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Interpolates values at the centres of the texels that lie in a chart.

  Args:
    charts: the charts.
    values: [V, C] at the vertices of the charts.
    size: width and height of the texture.

  Returns:
    covered: [size, size] bool, which texels lie in a chart.
    points: [N, C] float64, the values at those, row by row.
  """
  corners = charts.uv.astype(np.float64)[charts.faces] * size - 0.5  # texel (i, j) has its centre at (i, j)
  low = np.maximum(np.ceil(corners.min(axis=1)), 0).astype(np.int64)
  high = np.minimum(np.floor(corners.max(axis=1)), size - 1).astype(np.int64)
  sides = np.maximum(high - low + 1, 0)
  # One entry for each texel in the bounding rectangle of each face: rectangles are small and of any shape.
  count = sides[:, 0] * sides[:, 1]
  face = np.repeat(np.arange(len(count)), count)
  within = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
  texels = low[face] + np.stack([within % sides[face, 0], within // sides[face, 0]], axis=1)
  weights = _barycentric(corners[face], texels)
  # A texel on the edge of two faces may be outside of both by rounding.
  inside = (weights >= -1e-9).all(axis=1)
  face, texels, weights = face[inside], texels[inside], weights[inside]
  flat, first = np.unique(texels[:, 1] * size + texels[:, 0], return_index=True)
  covered = np.zeros(size * size, bool)
  covered[flat] = True
  points = np.einsum("nk,nkc->nc", weights[first], values[charts.faces[face[first]]].astype(np.float64))
  return covered.reshape(size, size), points


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Returns the barycentric coordinates [N, 3] of points [N, 2] in triangles [N, 3, 2]; NaN in empty triangles."""
  a, b, c = np.moveaxis(corners, 1, 0)
  cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]  # noqa: E731
  with np.errstate(divide="ignore", invalid="ignore"):
    second = cross(points - a, c - a) / cross(b - a, c - a)
    third = cross(b - a, points - a) / cross(b - a, c - a)
  return np.stack([1.0 - second - third, second, third], axis=1)


def paint(covered: np.ndarray, colours: np.ndarray) -> np.ndarray:
  """Returns the texture [S, S, 3] uint8; texels outside of all charts take the colour of the nearest one inside.

  Args:
    covered: [S, S] bool.
    colours: [N, 3] in [0, 1] of the covered texels, row by row.
  """
  image = np.zeros((*covered.shape, 3), np.uint8)
  image[covered] = np.rint(np.clip(np.nan_to_num(colours), 0.0, 1.0) * 255.0)
  # Without gaps, however far a viewer's smaller versions of the texture reach across the seams.
  nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
  return image[tuple(nearest)]


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
  """Returns the colours [N, 3] in [0, 1] of a texture at uv [N, 2], bilinear between the centres of texels."""
  at = uv[:, ::-1] * np.array(image.shape[:2]) - 0.5
  channels = [ndimage.map_coordinates(image[..., c].astype(np.float64), at.T, order=1, mode="nearest")
              for c in range(3)]
  return np.stack(channels, axis=1) / 255.0


def psnr(asset: Surface, colour_fn: PointFn, inset: float = 0.0, count: int = 20_000, seed: int = 0) -> float:
  """Returns the peak signal-to-noise ratio of the texture against the colour field, decibels.

  Args:
    asset: a surface with a texture.
    colour_fn: points [N, 3] -> colours [N, 3].
    inset: as in `textured`.
    count: number of points, drawn evenly over the surface.
    seed: of the points.
  """
  rng = np.random.default_rng(seed)
  area = _area(asset.vertices, asset.faces)
  face = rng.choice(len(area), count, p=area / area.sum())
  first, second = np.sqrt(rng.random(count)), rng.random(count)
  weights = np.stack([1.0 - first, first * (1.0 - second), first * second], axis=1)  # even within a triangle
  at = lambda values: np.einsum("nk,nkc->nc", weights, values[asset.faces[face]])  # noqa: E731
  points = at(asset.vertices) - inset * at(asset.normals)
  expected = np.clip(colour_fn(points.astype(np.float32)), 0.0, 1.0)
  error = np.mean((sample(asset.texture, at(asset.uv)) - expected) ** 2)
  return float(-10.0 * np.log10(max(error, 1e-10)))
