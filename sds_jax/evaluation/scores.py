"""Scores of a finished object against the exact scene of its ShapeWorld caption.

Where the caption does not fix the azimuth, all are taken at the one rotation about z at which the silhouettes fit best;
the geometric ones are given both as they are and with one common scale fitted.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.io.mesh import auto_threshold, grid_density, in_chunks
from sds_jax.rendering.render import render_image
from sds_jax.shapeworld import captions, scenes, solids, tracer
from sds_jax.training.state import TrainState
from sds_jax.training.step import Scene
from sds_jax.types import Array, Camera
from sds_jax.views import cameras

VIEWS = 16
SIZE = 64
ROTATIONS = 36
SCALES = tuple(0.7 + 0.05 * i for i in range(13))
DISTANCE, FOV = 2.7, math.radians(46.0)
VOLUME_GRID = 56


def scoring_cameras() -> Camera:
  """16 cameras [16] on a spiral over the whole training distribution, from 10 degrees below to straight overhead."""
  share = np.arange(VIEWS) / (VIEWS - 1)
  low, high = math.sin(math.radians(-10.0)), math.sin(math.radians(88.0))
  elevation = np.arcsin(low + share * (high - low))  # even in area
  azimuth = np.arange(VIEWS) * math.pi * (3.0 - math.sqrt(5.0))  # the golden angle
  shots = [cameras.orbit(float(a), float(e), DISTANCE, FOV) for a, e in zip(azimuth, elevation)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *shots)


def turned(camera: Camera, angle: Array, scale: Array) -> Camera:
  """The camera that sees an object as `camera` [...] sees it turned by `angle` (radians, about z) and scaled."""
  c, s = jnp.cos(angle), jnp.sin(angle)
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  back = jnp.stack([jnp.stack([c, s, zero]), jnp.stack([-s, c, zero]), jnp.stack([zero, zero, one])])
  return Camera(position=jnp.einsum("ij,...j->...i", back, camera.position) / scale,
                rotation=jnp.einsum("ij,...jk->...ik", back, camera.rotation), focal=camera.focal)


@jax.jit
def truth_silhouettes(scene: scenes.Scene, angles: Array, scales: Array) -> Array:
  """bool [P, 16, SIZE, SIZE]: the caption's scene in every pose (angle [P], scale [P])."""
  shots = scoring_cameras()

  def pose(inputs):
    angle, scale = inputs
    return jax.lax.map(lambda camera: tracer.silhouette(scene, camera, SIZE, 1) > 0.5, turned(shots, angle, scale))

  return jax.lax.map(pose, (angles, scales))


@jax.jit
def truth_albedo(scene: scenes.Scene, angle: Array) -> tuple[Array, Array]:
  """Albedo [16, SIZE, SIZE, 3] and mask of the caption's scene turned by `angle`, as the scoring cameras see it."""

  def one(camera):
    image, coverage = tracer.render(scene, camera, camera.position, 1.0, 0.0, jnp.zeros(3), SIZE, 1)
    return image, coverage > 0.5

  return jax.lax.map(one, turned(scoring_cameras(), angle, jnp.float32(1.0)))


def object_views(scene: Scene, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
  """Albedo [16, SIZE, SIZE, 3] over black and opacity [16, SIZE, SIZE] of the object."""
  out = make_object_views(scene)(state.shown, state.occupancy)
  return jax.device_get(out)


@functools.lru_cache(maxsize=4)
def make_object_views(scene: Scene) -> Callable[[Any, Any], tuple[Array, Array]]:
  """The compiled renderer of `object_views`: (params, occupancy) -> (albedo, opacity)."""
  @jax.jit
  def views(params: Any, grid: Any):
    def one(camera):
      out = render_image(scene.field.apply, params["field"], camera, SIZE, SIZE, jnp.zeros((SIZE, SIZE, 3)),
                         options=scene.options, grid=grid)
      return out.rgb, out.opacity
    return jax.lax.map(one, scoring_cameras())

  return views


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union of masks over the last two axes; 1 where both are empty."""
  union = (a | b).sum((-2, -1))
  return np.where(union == 0, 1.0, (a & b).sum((-2, -1)) / np.maximum(union, 1))


def score(scene: Scene, state: TrainState, spec: captions.Spec) -> dict[str, Any]:
  """All scores of one object.

  Returns:
    silhouette_iou and silhouette_iou_scaled (means over 16 views), worst_view_iou, volume_iou, volume_iou_scaled,
    colour_error (mean absolute difference of RGB where truth and object overlap), colours_right, empty, full,
    rotation_deg and scale (of the best fit).
  """
  truth = scenes.scene_from_spec(spec)
  rgb, opacity = object_views(scene, state)
  mask = opacity > 0.5
  count = 1 if captions.azimuth_is_fixed(spec) else ROTATIONS
  angles = np.arange(count, dtype=np.float32) * (2 * math.pi / ROTATIONS)
  by_angle = _fit(truth, mask, angles, np.ones(count, np.float32))
  best = int(np.argmax(by_angle.mean(-1)))
  scales = np.array(SCALES, np.float32)
  by_scale = _fit(truth, mask, np.full(len(scales), angles[best]), scales)
  best_scale = int(np.argmax(by_scale.mean(-1)))
  volume, volume_scaled, share = _volumes(scene, state, truth, angles[best], scales[best_scale])
  error, right = _colours(truth, spec, angles[best], rgb, opacity)
  return dict(
      silhouette_iou=float(by_angle[best].mean()), silhouette_iou_scaled=float(by_scale[best_scale].mean()),
      worst_view_iou=float(by_angle[best].min()), volume_iou=volume, volume_iou_scaled=volume_scaled,
      colour_error=error, colours_right=right, empty=bool(mask.mean() < 0.005), full=bool(share > 0.8),
      rotation_deg=float(np.degrees(angles[best])), scale=float(scales[best_scale]))


def _fit(truth: scenes.Scene, mask: np.ndarray, angles: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """IoU [P, 16] of the object's silhouettes with the scene's in each pose."""
  return iou(np.asarray(truth_silhouettes(truth, angles, scales)), mask[None])


def _volumes(scene: Scene, state: TrainState, truth: scenes.Scene, angle: float,
             scale: float) -> tuple[float, float, float]:
  """Volume IoU as it is, with the fitted scale, and the share of the bounding ball that the object fills."""
  bound, apply = scene.config.field.bound, jax.jit(scene.field.apply)
  params = state.shown["field"]
  try:
    density = grid_density(lambda p: np.asarray(apply(params, jnp.asarray(p, jnp.float32)).density), VOLUME_GRID, bound)
    solid = density.reshape(-1) > auto_threshold(density, bound)
  except ValueError:  # an empty field has no threshold, one that is not finite no surface
    solid = np.zeros(VOLUME_GRID**3, bool)
  axis = np.linspace(-bound, bound, VOLUME_GRID)
  points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
  back = np.asarray(scenes.rotate_points_z(jnp.asarray(points), -angle))
  distance = jax.jit(lambda p: scenes.sdf(truth, p)[0])

  def overlap(size: float) -> float:
    inside = in_chunks(lambda p: np.asarray(distance(jnp.asarray(p / size, jnp.float32))), back) < 0
    return float((inside & solid).sum() / max((inside | solid).sum(), 1))

  ball = np.linalg.norm(points, axis=-1) < bound
  return overlap(1.0), overlap(float(scale)), float(solid[ball].mean())


def _colours(truth: scenes.Scene, spec: captions.Spec, angle: float, rgb: np.ndarray,
             opacity: np.ndarray) -> tuple[float, bool]:
  """Mean absolute RGB error on the overlap, and whether every part's mean colour is nearest to its own name."""
  albedo, inside = jax.device_get(truth_albedo(truth, jnp.float32(angle)))
  seen = inside & (opacity > 0.5)
  if not seen.any():
    return 1.0, False
  colour = rgb / np.maximum(opacity, 1e-3)[..., None]
  error = float(np.abs(colour - albedo)[seen].mean())
  names = list(solids.COLOURS)
  palette = np.array([solids.COLOURS[name] for name in names])
  right = []
  for name, _ in spec.parts:
    part = seen & (np.abs(albedo - np.asarray(solids.COLOURS[name])).max(-1) < 0.05)
    mean = colour[part].mean(0) if part.any() else np.full(3, np.inf)
    right.append(names[int(np.argmin(np.abs(palette - mean).sum(-1)))] == name if part.any() else False)
  return error, all(right)
