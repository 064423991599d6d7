"""Scores of a finished object against the exact scene of its ShapeWorld caption.

If the caption does not fix the azimuth, all scores are computed at the one rotation about z with the best mean IoU of
silhouettes. Geometric scores are returned both at the object's own scale and at the best of SCALES.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.evaluation import fronts, surface_scores
from sds_jax.io import asset
from sds_jax.io.mesh import auto_threshold, grid_density, in_chunks
from sds_jax.generators.field import FieldGenerator
from sds_jax.shapeworld import captions, scenes, solids, tracer
from sds_jax.training.state import TrainState
from sds_jax.tasks.outputs import ObjectGenerator
from sds_jax.types import Array, Camera
from sds_jax.views import cameras

VIEWS = 16
SIZE = 64
ROTATIONS = 36
SCALES = tuple(0.7 + 0.05 * i for i in range(13))
DISTANCE, FOV = 2.7, math.radians(46.0)
VOLUME_GRID = 56


def scoring_cameras() -> Camera:
  """Returns cameras [16] on a spiral over all training elevations.

  The elevations go from 10 degrees below the horizon to straight overhead.
  """
  share = np.arange(VIEWS) / (VIEWS - 1)
  low, high = math.sin(math.radians(-10.0)), math.sin(math.radians(88.0))
  elevation = np.arcsin(low + share * (high - low))  # even in area
  azimuth = np.arange(VIEWS) * math.pi * (3.0 - math.sqrt(5.0))  # the golden angle
  return cameras.orbits(azimuth, elevation, DISTANCE, FOV)


# The programs below are of one pose or one camera, so that one executable serves any number of them.
@functools.partial(jax.jit, static_argnames="size")
def _silhouettes(scene: scenes.SolidScene, shots: Camera, angle: Array, scale: Array, size: int) -> Array:
  """Returns the silhouettes, bool [V, size, size], of a scene in one pose."""
  # The cameras turn around the scene, whose distance functions stay as they are.
  turned = cameras.camera_of_turned_object(shots, angle, scale)
  return jax.lax.map(lambda camera: tracer.silhouette(scene, camera, size, 1) > 0.5, turned)


def traced(scene: scenes.SolidScene, shots: Camera, light: np.ndarray | None = None,
           ambient: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """Renders the exact scene over black.

  Returns colours [V, SIZE, SIZE, 3] and the mask, bool [V, SIZE, SIZE].

  Args:
    scene: the exact scene.
    shots: cameras [V].
    light: [3], position, world units; None with ambient 1.
    ambient: in [0, 1]; 1 - ambient is the diffuse share, so 1 returns the bare albedo.
  """
  light = np.zeros(3, np.float32) if light is None else light
  return _each(lambda camera: _traced(scene, camera, light, np.float32(ambient), SIZE), shots)


@functools.partial(jax.jit, static_argnames="size")
def _traced(scene: scenes.SolidScene, camera: Camera, light: Array, ambient: Array, size: int) -> tuple[Array, Array]:
  image, coverage = tracer.render(scene, camera, light, ambient, 1.0 - ambient, jnp.zeros(3), size, 1)
  return image, coverage > 0.5


def object_views(generator: ObjectGenerator, state: TrainState, shots: Camera) -> tuple[np.ndarray, np.ndarray]:
  """Renders albedo over black and opacity of one object.

  The arrays are [V, SIZE, SIZE, 3] and [V, SIZE, SIZE], through cameras [V].
  """
  view = _make_view(generator, SIZE)
  return _each(lambda camera: view(state.shown, state.occupancy, camera), shots)


def _each(view: Callable[[Camera], tuple[Array, Array]], shots: Camera) -> tuple[np.ndarray, np.ndarray]:
  """Returns what `view` returns for each of the cameras [V], stacked."""
  shots = jax.tree.map(np.asarray, shots)
  views = [view(jax.tree.map(lambda leaf: leaf[i], shots)) for i in range(len(shots.focal))]
  return tuple(np.stack(parts) for parts in zip(*jax.device_get(views)))


# Cached by generator: what is compiled for one object serves all objects of a run.
@functools.lru_cache(maxsize=4)
def _make_view(generator: ObjectGenerator, size: int) -> Callable[[Any, Any, Camera], tuple[Array, Array]]:
  return jax.jit(lambda params, grid, camera: generator.render_albedo(params, grid, camera, size))


@functools.lru_cache(maxsize=4)
def _make_density(generator: FieldGenerator) -> Callable[[Any, Array], Array]:
  return jax.jit(generator.density)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the intersection over union of masks over the last two axes; 1 for two empty masks."""
  union = (a | b).sum((-2, -1))
  return np.where(union == 0, 1.0, (a & b).sum((-2, -1)) / np.maximum(union, 1))


def score(generator: ObjectGenerator, state: TrainState, spec: captions.Spec) -> dict[str, Any]:
  """Returns all scores of one object.

  Returns:
    silhouette_iou and silhouette_iou_scaled (means over 16 views), worst_view_iou, volume_iou, volume_iou_scaled,
    colour_error (mean absolute difference of RGB where truth and object overlap), colours_right, empty, full,
    rotation_deg and scale (of the best fit); false_fronts (see `fronts`) if the caption fixes the azimuth; those of
    `surface_scores` if there is a mesh.
  """
  truth = scenes.scene_from_spec(spec)
  rgb, opacity = object_views(generator, state, scoring_cameras())
  mask = opacity > 0.5
  # The front of an object fixes its azimuth; other objects may have come out at any angle.
  count = 1 if captions.azimuth_is_fixed(spec) else ROTATIONS
  angles = np.arange(count, dtype=np.float32) * (2 * math.pi / ROTATIONS)
  # Angle first and scale second: all pairs would cost 36 x 13 poses.
  by_angle = _fit(truth, mask, angles, np.ones(count, np.float32))
  best = int(np.argmax(by_angle.mean(-1)))
  scales = np.array(SCALES, np.float32)
  by_scale = _fit(truth, mask, np.full(len(scales), angles[best]), scales)
  best_scale = int(np.argmax(by_scale.mean(-1)))
  volume, filled = {}, 0.0
  if generator.density:
    points, solid, filled = solid_points(generator, state)
    # Into the scene's frame, so by the inverse of the object's rotation and scale.
    points = np.asarray(scenes.rotate_points_z(jnp.asarray(points), -angles[best]))
    volume = dict(volume_iou=volume_iou(truth, points, solid),
                  volume_iou_scaled=volume_iou(truth, points / scales[best_scale], solid),
                  **_mesh_scores(generator, state, spec, float(angles[best])))
  shown = {}
  if captions.azimuth_is_fixed(spec):
    around = object_views(generator, state, fronts.ring())[0]
    shown = dict(false_fronts=fronts.false_fronts(around, traced(truth, fronts.ring())[0]))
  error, right = _colours(truth, spec, angles[best], rgb, opacity)
  return dict(
      silhouette_iou=float(by_angle[best].mean()), silhouette_iou_scaled=float(by_scale[best_scale].mean()),
      worst_view_iou=float(by_angle[best].min()), **volume,
      colour_error=error, colours_right=right, **shown, **flags(opacity, filled),
      rotation_deg=float(np.degrees(angles[best])), scale=float(scales[best_scale]))


def _mesh_scores(generator: FieldGenerator, state: TrainState, spec: captions.Spec, angle: float) -> dict[str, float]:
  """Returns the scores of the mesh as it is exported; none of an object without a surface."""
  try:
    mesh = asset.finished(generator.make_mesh(state.shown), generator.mesh.faces)
  except ValueError:
    return {}
  return surface_scores.surface_scores(mesh, spec, angle)


def _fit(truth: scenes.SolidScene, mask: np.ndarray, angles: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Returns the IoU [P, 16] of the silhouettes of object and scene in each pose."""
  shots = scoring_cameras()
  poses = [_silhouettes(truth, shots, angle, scale, SIZE) for angle, scale in zip(angles, scales)]
  return iou(np.stack(jax.device_get(poses)), mask[None])


def solid_points(generator: FieldGenerator, state: TrainState) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns a grid of points and which points are solid.

  The result is points [N, 3], bool [N], and the solid share of the bounding ball. Solid points are denser than the
  mesh's automatic threshold; without a threshold no point is solid.
  """
  bound, params, density_fn = generator.options.bound, state.shown, _make_density(generator)
  try:
    density = grid_density(lambda p: np.asarray(density_fn(params, jnp.asarray(p, jnp.float32))), VOLUME_GRID, bound)
    # The mesh's own threshold, so that the score is of the object that is exported.
    solid = density.reshape(-1) > auto_threshold(density, bound)
  except ValueError:  # an empty field has no threshold, a non-finite field no surface
    solid = np.zeros(VOLUME_GRID**3, bool)
  axis = np.linspace(-bound, bound, VOLUME_GRID)
  points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
  ball = np.linalg.norm(points, axis=-1) < bound
  return points, solid, float(solid[ball].mean())


def volume_iou(truth: scenes.SolidScene, points: np.ndarray, solid: np.ndarray) -> float:
  """Returns the IoU of the exact scene's interior and the solid points.

  `points` [N, 3] are in the scene's frame; `solid` is bool [N].
  """
  inside = in_chunks(lambda p: np.asarray(_distance(truth, jnp.asarray(p, jnp.float32))), points) < 0
  return float((inside & solid).sum() / max((inside | solid).sum(), 1))


@jax.jit
def _distance(truth: scenes.SolidScene, points: Array) -> Array:
  return scenes.sdf(truth, points)[0]


def flags(opacity: np.ndarray, filled: float) -> dict[str, bool]:
  """Returns whether an object is `empty` or `full`.

  An object is empty if under 0.5% of pixels [..., SIZE, SIZE] are opaque, and full if over 80% of the ball is solid.
  """
  return dict(empty=bool((opacity > 0.5).mean() < 0.005), full=bool(filled > 0.8))


def _colours(truth: scenes.SolidScene, spec: captions.Spec, angle: float, rgb: np.ndarray,
             opacity: np.ndarray) -> tuple[float, bool]:
  """Returns the mean absolute RGB error on the overlap, and a verdict.

  The verdict is whether each part's mean colour is nearest to the part's name.
  """
  turned = cameras.camera_of_turned_object(scoring_cameras(), angle, np.float32(1.0))
  albedo, inside = traced(truth, turned)
  overlap = inside & (opacity > 0.5)
  if not overlap.any():
    return 1.0, False
  colour = rgb / np.maximum(opacity, 1e-3)[..., None]  # renders are over black: undoes the product with opacity
  error = float(np.abs(colour - albedo)[overlap].mean())
  names = list(solids.COLOURS)
  palette = np.array([solids.COLOURS[name] for name in names])
  right = []
  for name, _ in spec.parts:
    # Within 0.05 of the named colour lies the body of a part, without painted accents.
    part = overlap & (np.abs(albedo - np.asarray(solids.COLOURS[name])).max(-1) < 0.05)
    mean = colour[part].mean(0) if part.any() else np.full(3, np.inf)
    right.append(names[int(np.argmin(np.abs(palette - mean).sum(-1)))] == name if part.any() else False)
  return error, all(right)
