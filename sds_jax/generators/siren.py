"""A network of sines draws each pixel from its coordinates (SIREN, arXiv:2006.09661)."""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sds_jax.generators.parameterization import Parameterization, coordinates
from sds_jax.types import Array, Params


def make_siren(size: int, hidden: int = 64, depth: int = 3, w0: float = 30.0) -> Parameterization:
  """Returns a generator whose colour is a network of sines of the coordinates.

  Colour = sigmoid(W h_depth + b), h_i = sin(w0 (W_i h_{i-1} + b_i)), h_0 = (x, y) in [-1, 1]^2.

  The init of section 3.2 keeps the spread of the activations the same from layer to layer: the first layer's weights
  are U(-1/n, 1/n), all others' U(-sqrt(6/n) / w0, sqrt(6/n) / w0), n the number of inputs.

  Args:
    size: side of the images of `apply`.
    hidden, depth: width and number of the layers of sines.
    w0: the frequency scale; the paper's 30 suits images of some hundred pixels.
  """
  widths = [2] + [hidden] * depth

  def init(key: Array) -> Params:
    keys = jax.random.split(key, depth + 1)
    # The first layer has two inputs, and its own bound 1 / n: its sines are to span many periods.
    bounds = [1 / 2] + [math.sqrt(6 / hidden) / w0] * depth
    outs = [hidden] * depth + [3]
    return [dict(w=jax.random.uniform(k, (n, m), minval=-bound, maxval=bound), b=jnp.zeros(m))
            for k, n, m, bound in zip(keys, widths, outs, bounds)]

  def at(params: Params, large: int) -> Array:
    h = coordinates(large).reshape(-1, 2)
    for layer in params[:-1]:
      h = jnp.sin(w0 * (h @ layer["w"] + layer["b"][None]))
    return jax.nn.sigmoid(h @ params[-1]["w"] + params[-1]["b"][None]).reshape(1, large, large, 3)

  return Parameterization(init, lambda params, key: at(params, size), at=at)
