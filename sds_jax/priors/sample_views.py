"""Novel views of an object in a picture, by a prior that is told pictures; `sample` has the command line."""
from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp

from sds_jax import compilation
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.decoding import PictureError, decode
from sds_jax.priors.prior import Prior
from sds_jax.priors.sight import Seen, null
from sds_jax.types import Array, Params
from sds_jax.views.poses import relative_pose


_LARGEST_SIDE = 2048
"""Pixels a side beyond which a picture is averaged over blocks as it is read."""


def read_picture(path: str | os.PathLike) -> Array:
  """A square picture [S, S, 3] in [0, 1]; one with opacity on white, which is what such priors were trained with.

  Raises:
    PictureError: the file cannot be read (see `decoding.decode`), is not square, or shows nothing but one colour.
  """
  decoded = decode(path, _LARGEST_SIDE)
  picture = decoded.premultiplied + (1 - decoded.opacity[..., None])
  height, width, _ = picture.shape
  if height != width:
    raise PictureError(f"{path} has {width}x{height} pixels, expected a square: crop it, or put the object on a square")
  if (picture == picture[0, 0]).all():
    raise PictureError(f"{path} shows no object: it is of one colour, or all transparent")
  return jnp.asarray(picture)


def elevation_of(seen: Seen) -> float:
  """From where a picture was taken as the prior tells it, radians; 0, the horizon, where it can't."""
  elevation = float(seen["elevation"])
  return 0.0 if math.isnan(elevation) else elevation


def sample_views(prior: Prior, params: Params, seen: Seen, azimuth: Array, elevation: Array, from_elevation: float,
                 key: Array, steps: int = 50, guidance_scale: float = 3.0) -> Array:
  """Images [n, image_size, image_size, 3] in [0, 1] of the views at n azimuths and elevations, radians.

  Args:
    prior, params: from `prior.build`; `prior.sight` is not None.
    seen: what `prior.sight.see` gave of the picture.
    azimuth: [n], from the picture's camera counter-clockwise, seen from above.
    elevation: [n], above the horizon.
    from_elevation: of the picture's camera.
    key, steps, guidance_scale: see `ddim`.
  """
  pose = relative_pose(elevation, azimuth, jnp.float32(from_elevation), jnp.float32(0.0))

  def draw(params: Params, seen: Seen, pose: Array, key: Array) -> Array:
    cond = prior.sight.tell(params, seen, pose)
    return ddim(prior, params, cond, null(cond), key, steps, guidance_scale)

  return jax.jit(draw, compiler_options=compilation.unet_options())(params, seen, pose, key)
