"""Pinhole cameras around the object: placing them, drawing them at random, casting their rays, describing them.

Angles are radians. Azimuth 0 stands on the +x side and sees the object's front; it grows counter-clockwise seen from
above (+z). Elevation 0 is the horizon and pi/2 straight above. Functions take one camera; callers vmap.
"""
from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sds_jax.types import Array, Camera, Rays

CAMERA_DIM = 16
"""Length of `camera_features`, the vector that tells a prior where the camera stands."""

RAY_DIM = 18
"""Channels of `ray_features`, the image that tells a prior which line of space each of its pixels sees."""

_MEAN_DISTANCE, _MEAN_FOCAL = 2.7, 1.15


@dataclasses.dataclass(frozen=True)
class CameraDistribution:
  """Where random cameras stand (the structure of DreamFusion, Section 3.2, at this package's scale).

  The defaults are made so that the ball of radius 0.8 lies inside the frame.

  Attributes:
    elevation: (low, high), radians.
    uniform_angle: probability of drawing the elevation uniformly in angle; otherwise uniformly in area on the sphere.
    azimuth: (low, high), radians.
    distance: (low, high) from the origin, world units.
    fov_y: (low, high), vertical field of view, radians; unused where focal is given.
    focal: None, or (low, high) of the focal length over the image height, drawn uniformly.
    position_jitter: half-width of the uniform offset of each coordinate of the position.
    look_at_std: standard deviation of the point looked at, around the origin.
    up_std: standard deviation added to the camera's up vector.
  """
  elevation: tuple[float, float] = (math.radians(-10.0), math.radians(90.0))
  uniform_angle: float = 0.5
  azimuth: tuple[float, float] = (0.0, 2 * math.pi)
  distance: tuple[float, float] = (2.4, 3.0)
  fov_y: tuple[float, float] = (math.radians(42.0), math.radians(50.0))
  focal: tuple[float, float] | None = None
  position_jitter: float = 0.05
  look_at_std: float = 0.02
  up_std: float = 0.01

  @classmethod
  def dreamfusion(cls) -> CameraDistribution:
    """The constants of DreamFusion (arXiv 2209.14988, Section 3.2), for a scene bounded by a sphere of radius 1.4.

    The paper writes N(0, 0.2 I); as in public implementations, 0.2 and 0.02 are taken as standard deviations.
    """
    return cls(distance=(1.0, 1.5), focal=(0.7, 1.35), position_jitter=0.1, look_at_std=0.2, up_std=0.02)


def look_at(position: Array, target: Array, up: Array) -> Array:
  """Rotation [3, 3] of a camera at `position` [3] that looks at `target` [3]; columns right, up, backward.

  Where `up` [3] is parallel to the line of sight, the axis least parallel to it stands in.
  """
  backward = _normalize(position - target)
  right = jnp.cross(up, backward)
  spare_axis = jax.nn.one_hot(jnp.argmin(jnp.abs(backward)), 3, dtype=backward.dtype)
  parallel = jnp.sum(right**2) < 1e-8 * jnp.sum(up**2)
  right = _normalize(jnp.where(parallel, jnp.cross(spare_axis, backward), right))
  return jnp.stack([right, jnp.cross(backward, right), backward], axis=-1)


def orbit(azimuth: ArrayLike, elevation: ArrayLike, distance: ArrayLike, fov_y: ArrayLike,
          target: ArrayLike = (0.0, 0.0, 0.0)) -> Camera:
  """A camera on a sphere around `target` [3] that looks at its centre, upright. Angles in radians, all scalars."""
  azimuth, elevation, distance, fov_y, target = (
    jnp.asarray(value, jnp.float32) for value in (azimuth, elevation, distance, fov_y, target))
  position = target + distance * _direction(azimuth, elevation)
  return Camera(position, look_at(position, target, _upward(azimuth, elevation)), 0.5 / jnp.tan(fov_y / 2))


def sample_camera(key: Array, distribution: CameraDistribution = CameraDistribution()) -> tuple[Camera, Array, Array]:
  """One random camera, its azimuth and its elevation (scalars, before the jitter of the position).

  Consumes `key`, a view's own key (`fold_in(step_key, global view index)`).
  """
  key_azimuth, key_rest = jax.random.split(key)
  return _place(key_rest, jax.random.uniform(key_azimuth), distribution)


def sample_cameras(step_key: Array, indices: Array, n_views: int,
                   distribution: CameraDistribution = CameraDistribution()) -> tuple[Camera, Array, Array]:
  """Cameras of the views `indices` [B] out of the step's `n_views`, evenly spread in azimuth.

  View i stands at the fraction (u + i / n_views) mod 1 of the azimuth range, where u is drawn once from `step_key`
  (two views are opposite each other); all else comes from `fold_in(step_key, i)`, so that a view does not depend on
  which others are on the same device. Returns the cameras (leaves [B, ...]), azimuths [B] and elevations [B].
  """
  offset = jax.random.uniform(jax.random.fold_in(step_key, n_views))  # no view has the index n_views

  def one(index):
    fraction = jnp.mod(offset + index.astype(jnp.float32) / n_views, 1.0)
    _, key_rest = jax.random.split(jax.random.fold_in(step_key, index))
    return _place(key_rest, fraction, distribution)

  return jax.vmap(one)(indices)


def camera_rays(camera: Camera, height: int, width: int) -> Rays:
  """Rays [height, width] of one camera through its pixel centres, row 0 on top; directions of unit length."""
  x = (jnp.arange(width, dtype=jnp.float32) + 0.5 - width / 2) / height
  y = (height / 2 - jnp.arange(height, dtype=jnp.float32) - 0.5) / height
  y, x = jnp.meshgrid(y, x, indexing="ij")
  local = jnp.stack([x / camera.focal, y / camera.focal, -jnp.ones_like(x)], axis=-1)
  directions = jnp.einsum("ij,hwj->hwi", camera.rotation, local, precision=jax.lax.Precision.HIGHEST)
  return Rays(jnp.broadcast_to(camera.position[None, None], directions.shape), _normalize(directions))


def camera_features(camera: Camera) -> Array:
  """What a prior is told of a camera: [..., CAMERA_DIM], smooth over the sphere of directions, poles included.

  In order: unit direction d from the origin to the camera (3); for k = 1..4, sin(k azimuth) and cos(k azimuth), each
  times cos(elevation)^min(k, 2) so that it fades out at the poles, where azimuth means nothing (8); sin and cos of
  twice the elevation (2); distance - 2.7; focal - 1.15; 1.
  """
  distance = jnp.linalg.norm(camera.position, axis=-1)
  direction = camera.position / distance[..., None]
  x, y, z = jnp.moveaxis(direction, -1, 0)
  cos_elevation = jnp.sqrt(x * x + y * y + 1e-12)
  sin_1, cos_1 = y / cos_elevation, x / cos_elevation
  features, sin_k, cos_k = [x, y, z], sin_1, cos_1
  for k in range(1, 5):
    fade = cos_elevation**min(k, 2)
    features += [fade * sin_k, fade * cos_k]
    sin_k, cos_k = sin_k * cos_1 + cos_k * sin_1, cos_k * cos_1 - sin_k * sin_1
  features += [2 * z * cos_elevation, 1 - 2 * z * z]
  features += [distance - _MEAN_DISTANCE, camera.focal - _MEAN_FOCAL, jnp.ones_like(distance)]
  return jnp.stack(features, axis=-1)


def ray_features(features: Array, size: int) -> Array:
  """The same camera, told pixel by pixel: [CAMERA_DIM] -> [size, size, RAY_DIM]; zeros for an unknown camera (zeros).

  The camera is rebuilt from its `camera_features`, upright and looking at the origin. For the ray through each pixel's
  centre, in order: the point p nearest to the origin (3); the unit direction (3); sin and cos of pi p and of
  2 pi p (12). Rays as input channels are how networks that see one object from many sides are told the view
  (arXiv:2106.02634 for light fields); that most of a silhouette is a function of p alone makes them quick to learn.
  """
  known = features[15]
  # Any direction will do for the unknown camera: its channels are multiplied by zero.
  direction = _normalize(features[:3] + jnp.array([0.0, 0.0, 1e-6]))
  azimuth = jnp.arctan2(direction[1], direction[0] + 1e-12)
  elevation = jnp.arcsin(jnp.clip(direction[2], -1.0, 1.0))
  position = direction * (features[13] + _MEAN_DISTANCE)
  camera = Camera(position, look_at(position, jnp.zeros(3), _upward(azimuth, elevation)), features[14] + _MEAN_FOCAL)
  cast = camera_rays(camera, size, size)
  nearest = cast.origins - jnp.sum(cast.origins * cast.directions, -1, keepdims=True) * cast.directions
  waves = [wave(k * jnp.pi * nearest) for k in (1, 2) for wave in (jnp.sin, jnp.cos)]
  return known * jnp.concatenate([nearest, cast.directions, *waves], axis=-1)


def camera_of_turned_object(camera: Camera, angle: Array, scale: Array) -> Camera:
  """The camera that sees an object as `camera` [...] sees it turned by `angle` (radians, about z) and scaled."""
  c, s = jnp.cos(angle), jnp.sin(angle)
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  back = jnp.stack([jnp.stack([c, s, zero]), jnp.stack([-s, c, zero]), jnp.stack([zero, zero, one])])
  return Camera(position=jnp.einsum("ij,...j->...i", back, camera.position) / scale,
                rotation=jnp.einsum("ij,...jk->...ik", back, camera.rotation), focal=camera.focal)


def _place(key: Array, azimuth_fraction: Array, distribution: CameraDistribution) -> tuple[Camera, Array, Array]:
  """A camera at a given fraction of the azimuth range, all else drawn from `key`."""
  key_uniform, key_normal = jax.random.split(key)
  u = jax.random.uniform(key_uniform, (7,))  # two draws instead of nine: each costs compile time
  target_noise, up_noise = jax.random.normal(key_normal, (2, 3))
  azimuth = _between(distribution.azimuth, azimuth_fraction)
  elevation = _elevation(u[0], u[1], distribution)
  jitter = distribution.position_jitter * (2 * u[2:5] - 1)
  position = _between(distribution.distance, u[5]) * _direction(azimuth, elevation) + jitter
  up = _upward(azimuth, elevation) + distribution.up_std * up_noise
  rotation = look_at(position, distribution.look_at_std * target_noise, up)
  if distribution.focal is not None:
    focal = _between(distribution.focal, u[6])
  else:
    focal = 0.5 / jnp.tan(_between(distribution.fov_y, u[6]) / 2)
  return Camera(position, rotation, focal), azimuth, elevation


def _elevation(kind: Array, u: Array, distribution: CameraDistribution) -> Array:
  """A mixture of uniform in angle and uniform in area (uniform in sin(elevation)), from two uniform numbers."""
  low, high = distribution.elevation
  in_area = jnp.arcsin(_between((math.sin(low), math.sin(high)), u))
  return jnp.where(kind < distribution.uniform_angle, _between((low, high), u), in_area)


def _between(bounds: tuple[float, float], u: Array) -> Array:
  """The number at the fraction u of the way from low to high."""
  low, high = bounds
  return low + u * (high - low)


def _direction(azimuth: Array, elevation: Array) -> Array:
  """Unit vector [3] from the origin towards (azimuth, elevation)."""
  cos_elevation = jnp.cos(elevation)
  return jnp.stack([cos_elevation * jnp.cos(azimuth), cos_elevation * jnp.sin(azimuth), jnp.sin(elevation)])


def _upward(azimuth: Array, elevation: Array) -> Array:
  """Unit vector [3], the direction of growing elevation: the same upright camera as world up, but defined above too."""
  sin_elevation = jnp.sin(elevation)
  return jnp.stack([-sin_elevation * jnp.cos(azimuth), -sin_elevation * jnp.sin(azimuth), jnp.cos(elevation)])


def _normalize(vector: Array) -> Array:
  return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
