"""Samples novel views of the object in a photo; `sample` has the command line."""
from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp

from sds_jax import compilation
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.decoding import PictureError, decode
from sds_jax.priors.photo import PhotoFeatures, null_condition
from sds_jax.priors.prior import Prior
from sds_jax.types import Array, Params
from sds_jax.views.poses import relative_pose


_LARGEST_SIDE = 2048
"""Photos with a longer side, in pixels, are averaged over blocks when they are read."""


def read_picture(path: str | os.PathLike) -> Array:
  """Returns a square photo [S, S, 3] in [0, 1].

  Transparent pixels become white, as in the priors' training.

  Raises:
    PictureError: the file cannot be read (see `decoding.decode`), is not square, or shows nothing but one colour.
  """
  decoded = decode(path, _LARGEST_SIDE)
  # The colours are premultiplied, so white is added in proportion to the transparency.
  picture = decoded.premultiplied + (1 - decoded.opacity[..., None])
  height, width, _ = picture.shape
  if height != width:
    raise PictureError(f"{path} has {width}x{height} pixels, expected a square: crop it, or put the object on a square")
  # Wholly transparent photos have become white above, and are caught here, too.
  if (picture == picture[0, 0]).all():
    raise PictureError(f"{path} shows no object: it is of one colour, or all transparent")
  return jnp.asarray(picture)


def elevation_of(features: PhotoFeatures) -> float:
  """Returns the prior's estimate of the camera's elevation, radians.

  0, the horizon, without an estimate.
  """
  elevation = float(features["elevation"])
  return 0.0 if math.isnan(elevation) else elevation


def sample_views(prior: Prior, params: Params, features: PhotoFeatures, azimuth: Array, elevation: Array,
                 from_elevation: float, key: Array, steps: int = 50, guidance_scale: float = 3.0) -> Array:
  """Samples images of the views at n azimuths and elevations.

  Returns [n, image_size, image_size, 3] in [0, 1]. Angles are in radians.

  Args:
    prior, params: from `prior.build`; `prior.photo` is not None.
    features: of the photo, from `prior.photo.encode`.
    azimuth: [n], from the photo's camera counter-clockwise, viewed from above.
    elevation: [n], above the horizon.
    from_elevation: of the photo's camera.
    key, steps, guidance_scale: see `ddim`.
  """
  pose = relative_pose(elevation, azimuth, jnp.float32(from_elevation), jnp.float32(0.0))

  def draw(params: Params, features: PhotoFeatures, pose: Array, key: Array) -> Array:
    cond = prior.photo.conditions(params, features, pose)
    return ddim(prior, params, cond, null_condition(cond), key, steps, guidance_scale)

  return jax.jit(draw, compiler_options=compilation.unet_options())(params, features, pose, key)
