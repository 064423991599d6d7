"""A compositional pattern-producing network (Stanley 2007): a small network draws each pixel from its coordinates."""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sds_jax.generators.parameterization import Parameterization, coordinates
from sds_jax.types import Array, Params


def make_cppn(size: int, hidden: int = 24, depth: int = 6) -> Parameterization:
  """Returns a generator with colour = sigmoid(MLP(x, y)), smooth and of any resolution.

  As in Distill 2018, coordinates have unit variance ([-sqrt 3, sqrt 3]). After each layer h the activations are both
  atan(h) / 0.67 and (atan(h)^2 - 0.45) / 0.396, of about unit variance and uncorrelated for a normal h. The last layer
  begins at zero, so the first image is grey.

  Args:
    size: side of the images of `apply`.
    hidden, depth: channels of a layer before the activation doubles them, and number of layers.
  """
  widths = [2] + [2 * hidden] * depth  # each layer emits two activations a channel

  def init(key: Array) -> Params:
    keys = jax.random.split(key, depth)
    layers = [dict(w=jax.random.normal(k, (n, hidden)) / math.sqrt(n), b=jnp.zeros(hidden))
              for k, n in zip(keys, widths)]
    return dict(layers=layers, last=dict(w=jnp.zeros((widths[-1], 3)), b=jnp.zeros(3)))

  def at(params: Params, large: int) -> Array:
    h = math.sqrt(3.0) * coordinates(large).reshape(-1, 2)
    for layer in params["layers"]:
      a = jnp.arctan(h @ layer["w"] + layer["b"][None])
      h = jnp.concatenate([a / 0.67, (a * a - 0.45) / 0.396], axis=-1)
    return jax.nn.sigmoid(h @ params["last"]["w"] + params["last"]["b"][None]).reshape(1, large, large, 3)

  return Parameterization(init, lambda params, key: at(params, size), at=at)
