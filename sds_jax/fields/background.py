"""What is behind the object: a colour for every ray."""
from __future__ import annotations

import dataclasses
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.fields.encodings import positional_encoding
from sds_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Background:
  """Two functions: init(key) -> params, and apply(params, key, directions [R, 3] of one view) -> colours [R, 3].

  `key` is the view's own; only "plain" consumes it.
  """
  init: Callable[[Array], Params]
  apply: Callable[[Params, Array, Array], Array]


def plain_colour(key: Array) -> Array:
  """A random nearly grey colour [3]: U(0.35, 1) plus a tint U(-0.08, 0.08) of each channel, clipped to [0, 1]."""
  key_grey, key_tint = jax.random.split(key)
  grey = jax.random.uniform(key_grey, minval=0.35, maxval=1.0)
  return jnp.clip(grey + jax.random.uniform(key_tint, (3,), minval=-0.08, maxval=0.08), 0.0, 1.0)


class DirectionMLP(nn.Module):
  """DreamFusion's environment map: a small MLP of the encoded ray direction [R, 3], giving colours [R, 3] in [0, 1]."""
  hidden: int = 32
  depth: int = 1
  num_octaves: int = 3

  @nn.compact
  def __call__(self, directions: Array) -> Array:
    x = positional_encoding(directions, self.num_octaves, base=1.0)
    for _ in range(self.depth):
      x = nn.silu(nn.Dense(self.hidden)(x))
    return jax.nn.sigmoid(nn.Dense(3)(x))


def white() -> Background:
  """White everywhere."""
  return Background(lambda key: {}, lambda params, key, directions: jnp.ones_like(directions))


def plain() -> Background:
  """One `plain_colour` a view, so that the object cannot hide in it nor paint it."""
  return Background(
    lambda key: {}, lambda params, key, directions: jnp.broadcast_to(plain_colour(key)[None], directions.shape))


def mlp(**options) -> Background:
  """`DirectionMLP` with these attributes, learnt with the object."""
  network = DirectionMLP(**options)
  return Background(
    lambda key: network.init(key, jnp.zeros((1, 3)))["params"],
    lambda params, key, directions: network.apply({"params": params}, directions))


BACKGROUNDS: dict[str, Callable[..., Background]] = {"plain": plain, "white": white, "mlp": mlp}


def make_background(name: str, **options) -> Background:
  """A background by its name in BACKGROUNDS. Raises ValueError for an unknown one."""
  if name not in BACKGROUNDS:
    raise ValueError(f"unknown background {name!r}; known: {', '.join(sorted(BACKGROUNDS))}")
  return BACKGROUNDS[name](**options)
