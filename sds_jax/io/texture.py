"""Gives a mesh a texture: charts by xatlas, and the colour of every texel from a colour field.

A texel takes the colour of its own point of the surface, so the texture is as fine as its size allows, however few
vertices the mesh has.
"""
from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import trimesh
from scipy import ndimage

from sds_jax.io import charts_child, surface
from sds_jax.io.surface import Surface

PointFn = Callable[[np.ndarray], np.ndarray]
"""points [N, 3] float32, world units -> colours [N, 3] in [0, 1] as displayed."""

PADDING = 4
"""Texels between charts, so that no filter of a viewer mixes the colours of two charts."""


LEAST_CHARTS = 30
"""A chart covers at most 1 / LEAST_CHARTS of the surface."""
TIMEOUT_S = 600
"""Seconds after which xatlas is stopped."""
TEXELS_AT_ONCE = 2**22


class TextureError(RuntimeError):
  """Raised where a mesh gets no texture; the message is one line."""


class Charts(NamedTuple):
  """A mesh cut into charts that lie flat in the texture.

  Attributes:
    index: [V] int64, the mesh's vertex of each chart vertex.
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
    TextureError: see `cut`.
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
  """Returns the charts of a mesh, packed into a square texture of `size` texels a side.

  Raises:
    TextureError: xatlas has failed on this mesh.
  """
  if not is_installed():
    raise TextureError("xatlas is not installed: pip install 'sds_jax[texture]'")
  # Of unit size, because xatlas drops faces below an area of its own.
  vertices = vertices / max(float(np.ptp(vertices, axis=0).max()), 1e-30)
  given = io.BytesIO()
  # The time grows with the square of a chart's faces: of 20,000 faces in 10 charts 13 s, in 50 charts 2 s.
  np.savez(given, vertices=vertices.astype(np.float32), faces=faces.astype(np.uint32), normals=normals, size=size,
           padding=PADDING, area=_area(vertices, faces).sum() / LEAST_CHARTS)
  try:
    done = subprocess.run([sys.executable, charts_child.__file__], input=given.getvalue(), capture_output=True,
                          check=True, timeout=TIMEOUT_S)
    made = np.load(io.BytesIO(done.stdout))
  except (OSError, subprocess.SubprocessError, ValueError) as error:
    raise TextureError(f"xatlas failed on {len(faces):,} faces ({type(error).__name__})") from error
  if len(made["faces"]) != len(faces) or not made["sides"].min() > 0:
    raise TextureError(f"xatlas left out some of {len(faces):,} faces")
  # xatlas packs into a rectangle of about size x size texels; a square of its longer side keeps all texels square.
  return Charts(made["index"].astype(np.int64), made["faces"].astype(np.int64),
                made["uv"] * np.float32(made["sides"] / made["sides"].max()))


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
  # Each face has a rectangle of texels around it; some millions of texels at a time bound the memory.
  part = np.cumsum(sides[:, 0] * sides[:, 1]) // TEXELS_AT_ONCE
  flat, points = [], []
  for faces in np.split(np.arange(len(sides)), np.flatnonzero(np.diff(part)) + 1):
    face, texels, weights = _inside(corners[faces], low[faces], sides[faces])
    flat.append(texels[:, 1] * size + texels[:, 0])
    points.append(np.einsum("nk,nkc->nc", weights, values[charts.faces[faces[face]]].astype(np.float64)))
  flat, first = np.unique(np.concatenate(flat), return_index=True)
  covered = np.zeros(size * size, bool)
  covered[flat] = True
  return covered.reshape(size, size), np.concatenate(points)[first]


def _inside(corners: np.ndarray, low: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the texels in each triangle: its number [N], the texel [N, 2], barycentric coordinates [N, 3].

  Args:
    corners: [F, 3, 2] of the triangles, in texels.
    low: [F, 2], the first texel of the rectangle around each.
    sides: [F, 2], width and height of the rectangle.
  """
  count = sides[:, 0] * sides[:, 1]
  face = np.repeat(np.arange(len(count)), count)
  within = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
  texels = low[face] + np.stack([within % sides[face, 0], within // sides[face, 0]], axis=1)
  weights = _barycentric(corners[face], texels)
  # A texel on the edge of two faces may be outside of both by rounding.
  inside = (weights >= -1e-9).all(axis=1)
  return face[inside], texels[inside], weights[inside]


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
  image[covered] = surface.displayed(colours)
  # Fills all gaps, because smaller versions of the texture mix colours across seams.
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
  expected = np.clip(np.nan_to_num(colour_fn(points.astype(np.float32))), 0.0, 1.0)
  error = np.mean((sample(asset.texture, at(asset.uv)) - expected) ** 2)
  return float(-10.0 * np.log10(max(error, 1e-10)))
