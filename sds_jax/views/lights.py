"""Random lights and shading modes, as in DreamFusion (arXiv 2209.14988, Section 3.2)."""
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sds_jax.prng import as_threefry
from sds_jax.types import Array, PyTree

ALBEDO, LAMBERTIAN, TEXTURELESS = 0, 1, 2
"""Shading modes: the bare albedo; the albedo lit by a point light; white lit by a point light, so that only the shape
explains the image."""


@dataclasses.dataclass(frozen=True)
class LightDistribution:
  """The distribution of lights and shading modes. The defaults are the paper's.

  Attributes:
    distance: (low, high) of the light's distance from the origin, world units.
    direction_std: standard deviation, world units, around the camera's position of the point in the light's direction.
    shaded: probability of a lit mode after the `albedo_only` part of training.
    textureless: probability of the textureless mode in a lit step.
    albedo_only: fraction of training, from the start, with albedo steps only.
    ambient, diffuse: intensities of a lit step (an albedo step has ambient 1 and diffuse 0).
    ambient_spread: largest intensity moved from diffuse to ambient in a lit step; the amount is uniform.
  """
  distance: tuple[float, float] = (0.8, 1.5)
  direction_std: float = 1.0
  shaded: float = 0.75
  textureless: float = 0.5
  albedo_only: float = 1 / 15
  ambient: float = 0.1
  diffuse: float = 0.9
  ambient_spread: float = 0.0


class Shading(PyTree):
  """The shading of a training step.

  Attributes:
    mode: [] int32, ALBEDO, LAMBERTIAN or TEXTURELESS.
    ambient, diffuse: [] intensities.
  """
  mode: Array
  ambient: Array
  diffuse: Array


def sample_light(key: Array, camera_position: Array, distribution: LightDistribution = LightDistribution()) -> Array:
  """Draws the position [3] of a point light.

  The light's direction is near the camera's direction. The position is in world units. Consumes `key`, the view's key.
  """
  key_direction, key_distance = jax.random.split(as_threefry(key))
  # Gaussian around the camera, not uniform: most lights are on the camera's side of the object.
  towards = camera_position + distribution.direction_std * jax.random.normal(key_direction, (3,))
  low, high = distribution.distance
  distance = jax.random.uniform(key_distance, minval=low, maxval=high)
  return distance * towards / jnp.linalg.norm(towards)


def sample_shading(step_key: Array, progress: Array, distribution: LightDistribution = LightDistribution()) -> Shading:
  """Draws the shading of a training step.

  All views of the step have the same shading.

  Args:
    step_key: consumed.
    progress: [] in [0, 1], completed fraction of training.
    distribution: probabilities and intensities.
  """
  # A mode per step and not per view: the predicate of a later `lax.cond` is then a scalar, and a single branch runs.
  step_key = as_threefry(step_key)
  key_shaded, key_textureless = jax.random.split(step_key)
  shaded = jax.random.bernoulli(key_shaded, distribution.shaded) & (progress >= distribution.albedo_only)
  textureless = jax.random.bernoulli(key_textureless, distribution.textureless)
  ambient, diffuse = jnp.float32(distribution.ambient), jnp.float32(distribution.diffuse)
  if distribution.ambient_spread:
    # fold_in(2) is independent of the two keys above, so the modes are those of a run without ambient_spread.
    moved = distribution.ambient_spread * jax.random.uniform(jax.random.fold_in(step_key, 2))
    ambient, diffuse = ambient + moved, diffuse - moved
  lit_mode = jnp.where(textureless, jnp.int32(TEXTURELESS), jnp.int32(LAMBERTIAN))
  return Shading(
    mode=jnp.where(shaded, lit_mode, jnp.int32(ALBEDO)),
    ambient=jnp.where(shaded, ambient, jnp.float32(1.0)),
    diffuse=jnp.where(shaded, diffuse, jnp.float32(0.0)),
  )
