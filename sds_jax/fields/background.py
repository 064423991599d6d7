"""What is behind the object: a colour for every ray."""
from __future__ import annotations

import dataclasses
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.fields.encodings import positional_encoding, spherical_harmonics
from sds_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Background:
  """Two functions: init(key) -> params, and apply(params, key, directions [R, 3] of one view) -> colours [R, 3].

  `key` is the view's own; "plain" consumes it, and so does one that is at times replaced by a random colour.
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


class HarmonicMLP(nn.Module):
  """An environment map as instant-ngp's followers have it: spherical harmonics of the ray direction and a small MLP.

  Directions [R, 3] -> colours [R, 3] in [0, 1].

  Attributes:
    degree: of the encoding, which has degree^2 values (threestudio 3, DreamFusionAcc 4).
    hidden, depth: size of the hidden layers and their number (threestudio 16 and 2, DreamFusionAcc 16 and 1).
  """
  degree: int = 3
  hidden: int = 16
  depth: int = 2

  @nn.compact
  def __call__(self, directions: Array) -> Array:
    x = spherical_harmonics(directions, self.degree)
    for _ in range(self.depth):
      x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.he_uniform())(x))
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
  return _learnt(DirectionMLP(**options))


def harmonics(**options) -> Background:
  """`HarmonicMLP` with these attributes, learnt with the object."""
  return _learnt(HarmonicMLP(**options))


def _learnt(network: nn.Module) -> Background:
  return Background(
    lambda key: network.init(key, jnp.zeros((1, 3)))["params"],
    lambda params, key, directions: network.apply({"params": params}, directions))


def at_times_random(background: Background, probability: float) -> Background:
  """The same background, but with this probability a view has one colour, uniform in [0, 1]^3, instead (threestudio).

  A learnt background that is sometimes not there can't stand in for the object.
  """
  def apply(params: Params, key: Array, directions: Array) -> Array:
    key_whether, key_colour = jax.random.split(key)
    colour = jnp.broadcast_to(jax.random.uniform(key_colour, (1, 3)), directions.shape)
    return jnp.where(jax.random.bernoulli(key_whether, probability), colour,
                     background.apply(params, key, directions))

  return Background(background.init, apply)


BACKGROUNDS: dict[str, Callable[..., Background]] = {
  "plain": plain, "white": white, "mlp": mlp, "harmonics": harmonics}
LEARNT = ("mlp", "harmonics")
"""Those of BACKGROUNDS that have parameters."""


def make_background(name: str, random_colour: float = 0.0, **options) -> Background:
  """A background by its name in BACKGROUNDS.

  Args:
    name: key of BACKGROUNDS.
    random_colour: probability that a view has one random colour instead (`at_times_random`).
    **options: attributes of the network of a learnt one.

  Raises:
    ValueError: the name is unknown.
  """
  if name not in BACKGROUNDS:
    raise ValueError(f"unknown background {name!r}; known: {', '.join(sorted(BACKGROUNDS))}")
  background = BACKGROUNDS[name](**options)
  return at_times_random(background, random_colour) if random_colour else background
