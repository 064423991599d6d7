"""Relative poses: the condition of view priors, from the camera of an input photo to the camera of a new view.

Zero-1-to-3 (arXiv:2303.11328, section 3.1) encodes the difference of the polar angles, and sine and cosine of the
difference of the azimuths. The fourth number is the difference of the distances, or, in Stable-Zero123, the polar angle
of the photo. Polar angles are measured from straight above. All angles are radians.
"""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sds_jax.types import Array, Camera
from sds_jax.views import cameras

POSE_DIM = 4
"""Length of `relative_pose`."""

DISTANCE, FOV_Y = 2.7, math.radians(46.0)
"""The camera of the shipped view prior in all views, as with Zero-1-to-3; world units and radians."""


def relative_pose(elevation: Array, azimuth: Array, from_elevation: Array, from_azimuth: Array) -> Array:
  """Returns a view's pose [..., POSE_DIM] relative to a photo.

  In order: polar angle minus the photo's polar angle; sine and cosine of azimuth minus the photo's
  azimuth; the photo's polar angle.

  Args:
    elevation, azimuth: [...] of the view, radians.
    from_elevation, from_azimuth: [...] of the photo, radians.
  """
  # Polar angle = pi / 2 - elevation, hence the swapped order of the elevations below.
  turn = azimuth - from_azimuth
  polar = jnp.pi / 2 - from_elevation
  return jnp.stack(jnp.broadcast_arrays(from_elevation - elevation, jnp.sin(turn), jnp.cos(turn), polar), axis=-1)


def pose_camera(pose: Array) -> Camera:
  """Returns the camera [] of a pose [POSE_DIM].

  The photo's camera is at azimuth 0.
  """
  turn = jnp.arctan2(pose[1], pose[2])
  return cameras.orbit(turn, jnp.pi / 2 - pose[3] - pose[0], DISTANCE, FOV_Y)


def pose_features(pose: Array) -> Array:
  """Returns `cameras.camera_features` [B, CAMERA_DIM] of poses [B, POSE_DIM].

  A pose of zeros, the unknown camera, gives zeros.
  """
  # Zeros are replaced before the trigonometry: arctan2(0, 0) has a NaN gradient, and the last `where` would not mask
  # a NaN.
  known = jnp.any(pose != 0.0, axis=-1, keepdims=True)
  safe = jnp.where(known, pose, jnp.array([[0.0, 0.0, 1.0, jnp.pi / 2]]))
  return jnp.where(known, cameras.camera_features(jax.vmap(pose_camera)(safe)), 0.0)
