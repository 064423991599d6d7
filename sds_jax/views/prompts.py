"""Prompts with the viewing direction (DreamFusion, arXiv 2209.14988, Section 3.2)."""
from __future__ import annotations

import math

import jax.numpy as jnp

from sds_jax.types import Array

VIEWS = ("front", "side", "back", "overhead")

_OVERHEAD = math.radians(60.0)
_OVERHEAD_BLEND = math.radians(15.0)


def view_prompts(prompt: str) -> list[str]:
  """Returns a prompt for each of VIEWS.

  The prompts are "<prompt>, <view> view", in the order of VIEWS.
  """
  return [f"{prompt}, {view} view" for view in VIEWS]


def view_index(azimuth: Array, elevation: Array) -> Array:
  """Returns the index [...] into VIEWS of a direction.

  The index is int32; angles are in radians. The direction is overhead above 60 degrees of elevation; otherwise
  front or back within 45 degrees of azimuth; otherwise side.
  """
  towards_front = jnp.cos(azimuth)
  around = jnp.where(towards_front >= math.sqrt(0.5), 0, jnp.where(towards_front <= -math.sqrt(0.5), 2, 1))
  return jnp.where(elevation > _OVERHEAD, 3, around).astype(jnp.int32)


def view_weights(azimuth: Array, elevation: Array) -> Array:
  """Returns weights [..., 4] to blend the embeddings of `view_prompts`.

  The weights are >= 0 with sum 1 and smooth in the direction. Front, side and back share as cos^2 and sin^2 of the
  azimuth; overhead fades in between 45 and 75 degrees of elevation. The largest weight belongs to `view_index`, except
  for ties and near the edge of the overhead region.
  """
  cos, sin = jnp.cos(azimuth), jnp.sin(azimuth)
  # A smoothstep, so that the blended embedding has no kink as the camera moves.
  rise = jnp.clip((elevation - _OVERHEAD) / (2 * _OVERHEAD_BLEND) + 0.5, 0.0, 1.0)
  overhead = rise * rise * (3 - 2 * rise)
  # The three shares sum to cos^2 + sin^2 = 1.
  around = jnp.stack([jnp.maximum(cos, 0.0)**2, sin**2, jnp.maximum(-cos, 0.0)**2], axis=-1)
  return jnp.concatenate([around * (1 - overhead)[..., None], overhead[..., None]], axis=-1)
