"""An image with opacity over a background that changes at every step.

The object becomes opaque.

Distill 2018, "Transparent Generation": over a random background only opaque pixels keep their colour, and a price on
opacity makes all other pixels clear.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.fields.background import plain_colour
from sds_jax.generators.parameterization import Parameterization
from sds_jax.generators.fourier import amplitudes, decorrelated_to_rgb, init_spectrum, synthesize
from sds_jax.types import Array, Params


def random_background(key: Array, size: int, noise: float) -> Array:
  """Returns a random near-grey colour [size, size, 3] in [0, 1].

  A share `noise` of the backgrounds has smooth noise.
  """
  k_colour, k_kind, k_noise = jax.random.split(key, 3)
  plain = plain_colour(k_colour)[None, None]
  waves = jax.image.resize(jax.random.normal(k_noise, (4, 4, 3)), (size, size, 3), "cubic")
  wavy = jax.random.bernoulli(k_kind, noise).astype(jnp.float32)
  return jnp.clip(plain + 0.25 * wavy * waves, 0.0, 1.0)


def make_translucent(size: int, noise: float = 0.0, price: float = 100.0, decay: float = 1.5,
                     init_std: float = 0.01) -> Parameterization:
  """Returns the generator x = a c + (1 - a) b of colours and opacity.

  c are the colours, a is the opacity, b a random background.

  Colours and opacity come from one spectrum of four channels, b from `random_background`.

  Args:
    size: side of the images.
    noise: share of backgrounds with smooth noise.
    price: weight of the mean opacity as a loss beside the distillation.
    decay, init_std: as in `fourier.make_fourier`.
  """
  scale = amplitudes(size, size, decay)

  def rgba(params: Params) -> Array:
    values = synthesize(params["spectrum"], scale, size)
    return jax.nn.sigmoid(jnp.concatenate([decorrelated_to_rgb(values[..., :3]), values[..., 3:]], axis=-1))

  def over(params: Params, background: Array) -> Array:
    drawn = rgba(params)
    return (drawn[..., 3:] * drawn[..., :3] + (1 - drawn[..., 3:]) * background)[None]

  def init(key: Array) -> Params:
    return dict(spectrum=init_spectrum(key, size, size, 4, init_std))

  return Parameterization(
      init, lambda params, key: over(params, random_background(key, size, noise)),
      show=lambda params: over(params, jnp.ones((size, size, 3))),
      extras=lambda params: dict(rgba=rgba(params)),
      penalty=lambda params: price * jnp.mean(rgba(params)[..., 3]))
