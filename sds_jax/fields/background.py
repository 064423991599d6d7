"""Backgrounds behind the object: a colour for every ray."""
from __future__ import annotations

import dataclasses
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.fields.encodings import positional_encoding, spherical_harmonics
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Background:
  """A background as two functions.

  Attributes:
    init: key -> params.
    apply: (params, key, directions [R, 3] of one view) -> colours [R, 3]. The key is the view's key; `plain` and
      `with_random_colour` consume the key, the other backgrounds ignore the key.
  """
  init: Callable[[Array], Params]
  apply: Callable[[Params, Array, Array], Array]


def plain_colour(key: Array) -> Array:
  """Draws a nearly grey colour [3].

  The grey is U(0.35, 1), plus a tint U(-0.08, 0.08) for each channel, clipped to [0, 1]. Consumes `key`.
  """
  key_grey, key_tint = jax.random.split(as_threefry(key))
  grey = jax.random.uniform(key_grey, minval=0.35, maxval=1.0)
  return jnp.clip(grey + jax.random.uniform(key_tint, (3,), minval=-0.08, maxval=0.08), 0.0, 1.0)


class DirectionMLP(nn.Module):
  """DreamFusion's environment map: a small MLP of the encoded ray direction.

  Directions [R, 3] -> colours [R, 3] in [0, 1].

  Attributes:
    hidden, depth: width and number of the hidden layers.
    num_octaves: frequencies 2^l, l < num_octaves, of the positional encoding.
  """
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
  """An environment map of instant-ngp's kind: a small MLP of the ray direction's spherical harmonics.

  Directions [R, 3] -> colours [R, 3] in [0, 1].

  Attributes:
    degree: number of bands of the encoding, degree^2 values (threestudio 3, DreamFusionAcc 4).
    hidden, depth: width and number of the hidden layers (threestudio 16 and 2, DreamFusionAcc 16 and 1).
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
  """Returns a white background without parameters."""
  return Background(lambda key: {}, lambda params, key, directions: jnp.ones_like(directions))


def plain() -> Background:
  """Returns a background with a random `plain_colour` for each view.

  The colour changes with every view, so the object can neither hide in the background nor draw on the background.
  """
  return Background(
    # The key belongs to the view, so all rays of the view share the colour.
    lambda key: {}, lambda params, key, directions: jnp.broadcast_to(plain_colour(key)[None], directions.shape))


def mlp(**options) -> Background:
  """Returns a learnt `DirectionMLP` background; `options` are the module's attributes."""
  return _from_network(DirectionMLP(**options))


def harmonics(**options) -> Background:
  """Returns a learnt `HarmonicMLP` background; `options` are the module's attributes."""
  return _from_network(HarmonicMLP(**options))


def _from_network(network: nn.Module) -> Background:
  return Background(
    lambda key: network.init(key, jnp.zeros((1, 3)))["params"],
    lambda params, key, directions: network.apply({"params": params}, directions))


def with_random_colour(background: Background, probability: float) -> Background:
  """Replaces some views' background by a random colour.

  `probability` is the share of such views (as in threestudio). The colour is uniform in [0, 1]^3. A learnt background
  missing from some views cannot stand in for the object.
  """
  def apply(params: Params, key: Array, directions: Array) -> Array:
    key_replace, key_colour = jax.random.split(as_threefry(key))
    colour = jnp.broadcast_to(jax.random.uniform(key_colour, (1, 3)), directions.shape)
    # Both sides are computed: the network is small, and a branch would not stay a branch under vmap.
    return jnp.where(jax.random.bernoulli(key_replace, probability), colour,
                     background.apply(params, key, directions))

  return Background(background.init, apply)


BACKGROUNDS: dict[str, Callable[..., Background]] = {
  "plain": plain, "white": white, "mlp": mlp, "harmonics": harmonics}
LEARNT = ("mlp", "harmonics")
"""The names in BACKGROUNDS whose background has parameters."""


def make_background(name: str, random_colour: float = 0.0, **options) -> Background:
  """Builds a background by name.

  Args:
    name: key of BACKGROUNDS.
    random_colour: probability of one random colour for a whole view (`with_random_colour`).
    **options: attributes of the network, for a name in LEARNT.

  Raises:
    ValueError: `name` is not in BACKGROUNDS.
  """
  if name not in BACKGROUNDS:
    raise ValueError(f"unknown background {name!r}; known: {', '.join(sorted(BACKGROUNDS))}")
  background = BACKGROUNDS[name](**options)
  return with_random_colour(background, random_colour) if random_colour else background
