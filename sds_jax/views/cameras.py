"""Pinhole cameras around the object: placement, random draws, rays, and features for priors.

Angles are radians. A camera at azimuth 0 is on the +x side and shows the object's front; azimuth grows
counter-clockwise seen from above (+z). Elevation 0 is the horizon and pi/2 straight above. Functions take a single
camera; callers vmap.
"""
from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sds_jax.prng import as_threefry
from sds_jax.types import Array, Camera, Rays

CAMERA_DIM = 16
"""Length of `camera_features`, a prior's camera condition."""

RAY_DIM = 18
"""Channels of `ray_features`, a prior's condition with the ray of each pixel."""

_MEAN_DISTANCE, _MEAN_FOCAL = 2.7, 1.15


@dataclasses.dataclass(frozen=True)
class CameraDistribution:
  """The distribution of random cameras: DreamFusion's (Section 3.2) at this package's scale.

  With the defaults the ball of radius 0.8 lies inside every frame.

  Attributes:
    elevation: (low, high), radians.
    uniform_angle: probability of an elevation uniform in angle; otherwise the elevation is uniform in area on the
      sphere.
    azimuth: (low, high), radians.
    distance: (low, high) from the origin, world units.
    fov_y: (low, high), vertical field of view, radians; unused with `focal`.
    focal: None, or (low, high) of the focal length over the image height, drawn uniformly.
    position_jitter: half-width of the uniform offset of each coordinate of the position, world units.
    look_at_std: standard deviation of the target around the origin, world units.
    up_std: standard deviation of the noise on the camera's up vector.
    relative: whether `distance` is multiplied by 1 / tan(fov / 2), so that an object keeps its size in the frame.
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
  relative: bool = False

  @classmethod
  def dreamfusion(cls) -> CameraDistribution:
    """Returns the constants of DreamFusion (arXiv 2209.14988, Section 3.2).

    The constants are for a scene bounded by a sphere of radius 1.4. The paper writes N(0, 0.2 I); as in public
    implementations, 0.2 and 0.02 are used as standard deviations.
    """
    return cls(distance=(1.0, 1.5), focal=(0.7, 1.35), position_jitter=0.1, look_at_std=0.2, up_std=0.02)


def look_at(position: Array, target: Array, up: Array) -> Array:
  """Returns the rotation [3, 3] of a camera towards a target.

  The camera is at `position` [3], the target at `target` [3]. The columns are right, up and backward. If `up` [3] is
  parallel to the line of sight, the coordinate axis least parallel to the line of sight replaces `up`.
  """
  backward = _normalize(position - target)
  right = jnp.cross(up, backward)
  # Chosen by jnp.where, so that the function stays differentiable and vmaps without a branch.
  spare_axis = jax.nn.one_hot(jnp.argmin(jnp.abs(backward)), 3, dtype=backward.dtype)
  parallel = jnp.sum(right**2) < 1e-8 * jnp.sum(up**2)
  right = _normalize(jnp.where(parallel, jnp.cross(spare_axis, backward), right))
  return jnp.stack([right, jnp.cross(backward, right), backward], axis=-1)


def orbit(azimuth: ArrayLike, elevation: ArrayLike, distance: ArrayLike, fov_y: ArrayLike,
          target: ArrayLike = (0.0, 0.0, 0.0)) -> Camera:
  """Returns an upright camera on a sphere.

  The camera looks at the sphere's centre `target` [3]. The other arguments are scalars; angles in radians, distance in
  world units.
  """
  azimuth, elevation, distance, fov_y, target = (
    jnp.asarray(value, jnp.float32) for value in (azimuth, elevation, distance, fov_y, target))
  position = target + distance * _direction(azimuth, elevation)
  return Camera(position, look_at(position, target, _upward(azimuth, elevation)), 0.5 / jnp.tan(fov_y / 2))


def orbits(azimuth: np.ndarray, elevation: np.ndarray, distance: float, fov_y: float) -> Camera:
  """Returns the cameras [V] of `orbit` at azimuths [V] and elevations [V] around the origin."""
  angles = (np.asarray(angle, np.float32) for angle in (azimuth, elevation))
  return _orbits(*angles, distance, fov_y)


_orbits = jax.jit(jax.vmap(orbit, in_axes=(0, 0, None, None)))
"""One program instead of an operation at a time for each camera."""


def sample_camera(key: Array, distribution: CameraDistribution = CameraDistribution()) -> tuple[Camera, Array, Array]:
  """Draws a random camera.

  Returns the camera, the azimuth and the elevation. Azimuth and elevation are scalars, before the jitter of the
  position. Consumes `key`, the view's key (`fold_in(step_key, global view index)`).
  """
  key_azimuth, key_rest = jax.random.split(as_threefry(key))
  return _place(key_rest, jax.random.uniform(key_azimuth), distribution)


def sample_cameras(step_key: Array, indices: Array, n_views: int,
                   distribution: CameraDistribution = CameraDistribution()) -> tuple[Camera, Array, Array]:
  """Draws a step's cameras, evenly spread in azimuth.

  `indices` [B] selects the views. View i has the fraction (u + i / n_views) mod 1 of the azimuth range,
  with the same random u for all views of the step (two views are opposite each other). All other draws use
  `fold_in(step_key, i)`, so a view does not depend on the other views on the device.

  Args:
    step_key: consumed; the same on all devices.
    indices: [B] int, global view indices in 0 .. n_views - 1.
    n_views: number of views of the step, over all devices.
    distribution: ranges of the draws.

  Returns:
    The cameras (leaves [B, ...]), azimuths [B] and elevations [B].
  """
  step_key = as_threefry(step_key)
  # No view has the index n_views, so no view reuses this key.
  offset = jax.random.uniform(jax.random.fold_in(step_key, n_views))

  def sample_view(index):
    fraction = jnp.mod(offset + index.astype(jnp.float32) / n_views, 1.0)
    _, key_rest = jax.random.split(jax.random.fold_in(step_key, index))
    return _place(key_rest, fraction, distribution)

  return jax.vmap(sample_view)(indices)


def sample_groups(step_key: Array, indices: Array, n_views: int, group: int, stratified: bool = True,
                  distribution: CameraDistribution = CameraDistribution()) -> tuple[Camera, Array, Array]:
  """Draws a step's cameras in groups around the object, as multi-view priors expect them (MVDream, arXiv:2308.16512).

  Views group k .. group k + group - 1 are evenly spread over the azimuth range, so four views are 90 degrees apart.
  Everything else is drawn once a group: elevation, distance, field of view and jitter. View i of group k has the
  fraction (u_k + i) / group of the azimuth range. All draws of a group use `fold_in(step_key, k)`.

  Args:
    step_key: consumed; the same on all devices.
    indices: [B] int, global view indices in 0 .. n_views - 1.
    n_views: number of views of the step, over all devices; a multiple of group.
    group: number of views of a group.
    stratified: whether the groups are spread evenly, u_k = (u + k / groups) mod 1 with one random u for all; otherwise
      each group draws its own u_k.
    distribution: ranges of the draws.

  Returns:
    The cameras (leaves [B, ...]), azimuths [B] and elevations [B].
  """
  step_key, groups = as_threefry(step_key), n_views // group
  shared = jax.random.uniform(jax.random.fold_in(step_key, groups))  # no group has this number

  def sample_view(index: Array) -> tuple[Camera, Array, Array]:
    number = index // group
    key_azimuth, key_rest = jax.random.split(jax.random.fold_in(step_key, number))
    own = jnp.mod(shared + number.astype(jnp.float32) / groups, 1.0) if stratified else jax.random.uniform(key_azimuth)
    return _place(key_rest, ((index % group).astype(jnp.float32) + own) / group, distribution)

  return jax.vmap(sample_view)(indices)


def camera_rays(camera: Camera, height: int, width: int) -> Rays:
  """Returns the rays [height, width] through the pixel centres.

  Row 0 is the top row; directions have unit length.
  """
  x = (jnp.arange(width, dtype=jnp.float32) + 0.5 - width / 2) / height
  y = (height / 2 - jnp.arange(height, dtype=jnp.float32) - 0.5) / height
  # x, too, is divided by the height: pixels are square, and the focal length is relative to the height.
  y, x = jnp.meshgrid(y, x, indexing="ij")
  local = jnp.stack([x / camera.focal, y / camera.focal, -jnp.ones_like(x)], axis=-1)
  # HIGHEST: a product in TF32 or bfloat16 would round the directions to 11 or 8 significant bits.
  directions = jnp.einsum("ij,hwj->hwi", camera.rotation, local, precision=jax.lax.Precision.HIGHEST)
  return Rays(jnp.broadcast_to(camera.position[None, None], directions.shape), _normalize(directions))


def camera_features(camera: Camera) -> Array:
  """Returns a prior's camera condition [..., CAMERA_DIM].

  The condition is smooth over the sphere of directions, including the poles. In order: unit direction d from the origin
  to the camera (3); for k = 1..4, sin(k azimuth) and cos(k azimuth), each times cos(elevation)^min(k, 2), which fades
  out at the poles, where azimuth has no meaning (8); sin and cos of twice the elevation (2); distance - 2.7; focal -
  1.15; 1.
  """
  distance = jnp.linalg.norm(camera.position, axis=-1)
  direction = camera.position / distance[..., None]
  x, y, z = jnp.moveaxis(direction, -1, 0)
  # 1e-12 keeps the root differentiable at the poles, where x = y = 0.
  cos_elevation = jnp.sqrt(x * x + y * y + 1e-12)
  sin_1, cos_1 = y / cos_elevation, x / cos_elevation
  features, sin_k, cos_k = [x, y, z], sin_1, cos_1
  for k in range(1, 5):
    fade = cos_elevation**min(k, 2)
    features += [fade * sin_k, fade * cos_k]
    # The angle addition theorem, instead of arctan2 and four pairs of sines and cosines.
    sin_k, cos_k = sin_k * cos_1 + cos_k * sin_1, cos_k * cos_1 - sin_k * sin_1
  features += [2 * z * cos_elevation, 1 - 2 * z * z]
  features += [distance - _MEAN_DISTANCE, camera.focal - _MEAN_FOCAL, jnp.ones_like(distance)]
  return jnp.stack(features, axis=-1)


def ray_features(features: Array, size: int) -> Array:
  """Returns a prior's camera condition for every pixel.

  [CAMERA_DIM] -> [size, size, RAY_DIM]. `features` are `camera_features`; zeros, the unknown camera, give zeros. The
  camera is rebuilt from the features, upright and towards the origin. Channels of the ray through a pixel's centre, in
  order: the point p nearest to the origin (3); the unit direction (3); sin and cos of pi p and of 2 pi p (12). Rays are
  the usual input channels of networks for many views of an object (arXiv:2106.02634 for light fields). Most of a
  silhouette is a function of p alone, so the channels are quick to learn from.
  """
  known = features[15]  # the constant 1 of camera_features; 0 for the unknown camera
  # Without the offset the unknown camera's direction would be 0 / 0, and NaN times zero is NaN.
  direction = _normalize(features[:3] + jnp.array([0.0, 0.0, 1e-6]))
  azimuth = jnp.arctan2(direction[1], direction[0] + 1e-12)
  # Clipped: rounding may push the component beyond 1, where arcsin is NaN.
  elevation = jnp.arcsin(jnp.clip(direction[2], -1.0, 1.0))
  position = direction * (features[13] + _MEAN_DISTANCE)
  camera = Camera(position, look_at(position, jnp.zeros(3), _upward(azimuth, elevation)), features[14] + _MEAN_FOCAL)
  cast = camera_rays(camera, size, size)
  nearest = cast.origins - jnp.sum(cast.origins * cast.directions, -1, keepdims=True) * cast.directions
  waves = [wave(k * jnp.pi * nearest) for k in (1, 2) for wave in (jnp.sin, jnp.cos)]
  return known * jnp.concatenate([nearest, cast.directions, *waves], axis=-1)


def camera_of_turned_object(camera: Camera, angle: Array, scale: Array) -> Camera:
  """Moves a camera instead of the object.

  Returns the camera whose image of the object equals the image from `camera` [...] of the object after a turn by
  `angle` (radians, about z) and a scaling by `scale`.
  """
  c, s = jnp.cos(angle), jnp.sin(angle)
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  # The inverse rotation. The scale divides the position only: rays and focal length are invariant under scaling.
  back = jnp.stack([jnp.stack([c, s, zero]), jnp.stack([-s, c, zero]), jnp.stack([zero, zero, one])])
  return Camera(position=jnp.einsum("ij,...j->...i", back, camera.position) / scale,
                rotation=jnp.einsum("ij,...jk->...ik", back, camera.rotation), focal=camera.focal)


def _place(key: Array, azimuth_fraction: Array, distribution: CameraDistribution) -> tuple[Camera, Array, Array]:
  """Draws a camera at a fraction of the azimuth range.

  Consumes `key`.
  """
  key_uniform, key_normal = jax.random.split(key)
  u = jax.random.uniform(key_uniform, (7,))  # two draws instead of nine: each costs compile time
  target_noise, up_noise = jax.random.normal(key_normal, (2, 3))
  azimuth = _between(distribution.azimuth, azimuth_fraction)
  elevation = _elevation(u[0], u[1], distribution)
  jitter = distribution.position_jitter * (2 * u[2:5] - 1)
  if distribution.focal is not None:
    focal = _between(distribution.focal, u[6])
  else:
    focal = 0.5 / jnp.tan(_between(distribution.fov_y, u[6]) / 2)
  distance = _between(distribution.distance, u[5]) * (2 * focal if distribution.relative else 1.0)
  position = distance * _direction(azimuth, elevation) + jitter
  up = _upward(azimuth, elevation) + distribution.up_std * up_noise
  rotation = look_at(position, distribution.look_at_std * target_noise, up)
  return Camera(position, rotation, focal), azimuth, elevation


def _elevation(kind: Array, u: Array, distribution: CameraDistribution) -> Array:
  """Maps two uniform numbers to an elevation.

  The elevation is uniform in angle, or uniform in area on the sphere.
  """
  low, high = distribution.elevation
  # Area on the sphere is uniform in sin(elevation) (Archimedes).
  in_area = jnp.arcsin(_between((math.sin(low), math.sin(high)), u))
  return jnp.where(kind < distribution.uniform_angle, _between((low, high), u), in_area)


def _between(bounds: tuple[float, float], u: Array) -> Array:
  """Returns the number at the fraction u from low to high."""
  low, high = bounds
  return low + u * (high - low)


def _direction(azimuth: Array, elevation: Array) -> Array:
  """Returns the unit vector towards (azimuth, elevation), [3]."""
  cos_elevation = jnp.cos(elevation)
  return jnp.stack([cos_elevation * jnp.cos(azimuth), cos_elevation * jnp.sin(azimuth), jnp.sin(elevation)])


def _upward(azimuth: Array, elevation: Array) -> Array:
  """Returns the unit vector of growing elevation, [3]."""
  # Gives the same upright camera as world up, and stays defined straight above the object.
  sin_elevation = jnp.sin(elevation)
  return jnp.stack([-sin_elevation * jnp.cos(azimuth), -sin_elevation * jnp.sin(azimuth), jnp.cos(elevation)])


def _normalize(vector: Array) -> Array:
  return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
