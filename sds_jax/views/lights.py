"""Lights and shading modes, drawn at random as in DreamFusion (arXiv 2209.14988, Section 3.2)."""
from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from sds_jax.types import Array

ALBEDO, LAMBERTIAN, TEXTURELESS = 0, 1, 2
"""Shading modes: bare colour; colour lit by a point light; white lit by a point light (so shape must explain)."""


@dataclasses.dataclass(frozen=True)
class LightDistribution:
  """Where lights stand and how often each shading mode is used. The defaults are the paper's.

  Attributes:
    distance: (low, high) of the light's distance from the origin, world units.
    direction_std: standard deviation of the point that gives the light's direction, around the camera's position.
    shaded: probability of a lit mode, once the first part of training has passed.
    textureless: probability that a lit step is textureless.
    albedo_only: fraction of training, from its start, in which every step is albedo.
    ambient, diffuse: intensities of a lit step (an albedo step has ambient 1 and diffuse 0).
    ambient_spread: how much light a lit step moves, at most, from diffuse to ambient; the amount is uniform.
  """
  distance: tuple[float, float] = (0.8, 1.5)
  direction_std: float = 1.0
  shaded: float = 0.75
  textureless: float = 0.5
  albedo_only: float = 1 / 15
  ambient: float = 0.1
  diffuse: float = 0.9
  ambient_spread: float = 0.0


@flax.struct.dataclass
class Shading:
  """How a step is shaded: mode (int32, one of ALBEDO, LAMBERTIAN, TEXTURELESS), ambient and diffuse intensities; []."""
  mode: Array
  ambient: Array
  diffuse: Array


def sample_light(key: Array, camera_position: Array, distribution: LightDistribution = LightDistribution()) -> Array:
  """Position [3] of a point light in a direction around the camera's, in world units. Consumes `key` (a view's own)."""
  key_direction, key_distance = jax.random.split(key)
  towards = camera_position + distribution.direction_std * jax.random.normal(key_direction, (3,))
  low, high = distribution.distance
  distance = jax.random.uniform(key_distance, minval=low, maxval=high)
  return distance * towards / jnp.linalg.norm(towards)


def sample_shading(step_key: Array, progress: Array, distribution: LightDistribution = LightDistribution()) -> Shading:
  """The shading of one step, the same for all its views, so that only one branch of a `lax.cond` runs.

  `progress` [] is the fraction of training done, in [0, 1]. Consumes `step_key`.
  """
  key_shaded, key_textureless = jax.random.split(step_key)
  shaded = jax.random.bernoulli(key_shaded, distribution.shaded) & (progress >= distribution.albedo_only)
  textureless = jax.random.bernoulli(key_textureless, distribution.textureless)
  ambient, diffuse = jnp.float32(distribution.ambient), jnp.float32(distribution.diffuse)
  if distribution.ambient_spread:
    moved = distribution.ambient_spread * jax.random.uniform(jax.random.fold_in(step_key, 2))
    ambient, diffuse = ambient + moved, diffuse - moved
  lit_mode = jnp.where(textureless, jnp.int32(TEXTURELESS), jnp.int32(LAMBERTIAN))
  return Shading(
    mode=jnp.where(shaded, lit_mode, jnp.int32(ALBEDO)),
    ambient=jnp.where(shaded, ambient, jnp.float32(1.0)),
    diffuse=jnp.where(shaded, diffuse, jnp.float32(0.0)),
  )
