"""Where a view stands relative to the view that a picture was taken from, as pose-conditioned priors are told it.

Zero-1-to-3 (arXiv:2303.11328, section 3.1) tells the polar angle's difference and the azimuth's by sine and cosine; its
fourth number is the difference of distances, or, in Stable-Zero123, the polar angle of the picture itself. Polar angles
are measured from straight above. All angles are radians.
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
"""The camera of the shipped view prior, world units and radians: the same in all its views, as with Zero-1-to-3."""


def relative_pose(elevation: Array, azimuth: Array, from_elevation: Array, from_azimuth: Array) -> Array:
  """[..., POSE_DIM]: polar angle less the picture's; sin and cos of the azimuth less the picture's; its polar angle.

  Args:
    elevation, azimuth: [...] of the view that is asked for.
    from_elevation, from_azimuth: [...] of the picture.
  """
  turn = azimuth - from_azimuth
  polar = jnp.pi / 2 - from_elevation
  return jnp.stack(jnp.broadcast_arrays(from_elevation - elevation, jnp.sin(turn), jnp.cos(turn), polar), axis=-1)


def pose_camera(pose: Array) -> Camera:
  """The camera [] of the view that a pose [POSE_DIM] asks for, where the picture's stands at azimuth 0."""
  turn = jnp.arctan2(pose[1], pose[2])
  return cameras.orbit(turn, jnp.pi / 2 - pose[3] - pose[0], DISTANCE, FOV_Y)


def pose_features(pose: Array) -> Array:
  """`cameras.camera_features` [B, CAMERA_DIM] of poses [B, POSE_DIM]; zeros, the unknown camera, for zeros."""
  known = jnp.any(pose != 0.0, axis=-1, keepdims=True)
  safe = jnp.where(known, pose, jnp.array([[0.0, 0.0, 1.0, jnp.pi / 2]]))
  return jnp.where(known, cameras.camera_features(jax.vmap(pose_camera)(safe)), 0.0)
