"""Free pixels: every value of the image is a parameter, behind a sigmoid."""
from __future__ import annotations

import jax

from sds_jax.generators.parameterization import Parameterization
from sds_jax.types import Array, Params


def make_pixels(size: int, init_std: float = 0.1) -> Parameterization:
  """Returns the generator x = sigmoid(theta).

  theta [size, size, 3] is at first drawn from N(0, init_std^2).

  The baseline: no term couples neighbouring pixels, so the noise of the estimator stays visible for long.
  """
  def init(key: Array) -> Params:
    return dict(logits=init_std * jax.random.normal(key, (size, size, 3)))

  def apply(params: Params, key: Array) -> Array:
    del key
    return jax.nn.sigmoid(params["logits"])[None]

  return Parameterization(init, apply)
