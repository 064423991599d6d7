"""Perp-Neg (arXiv:2304.04968, section 4): weights of positive and negative prompts by viewing direction.

The positive prompt embedding of a view is interpolated linearly in azimuth between front, side and back. The negative
prompts are always front and side; their weights depend on the direction, in two published variants. Both variants were
read from the programs named below; the paper's author contributed the first variant.

Both programs combine the prompts as `diffusion.perp_neg` does.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array
from sds_jax.views import prompts

NEGATIVES = (prompts.VIEWS.index("front"), prompts.VIEWS.index("side"))
"""Indices into `prompts.VIEWS` of the negative prompts, in the order of the weights."""


def stable_dreamfusion(azimuth: Array, elevation: Array) -> tuple[Array, Array]:
  """Returns the weights of stable-dreamfusion's defaults.

  (negative_w -2, front_decay_factor 2, side_decay_factor 10.) With r and q the shares of front and side in the positive
  prompt: -2 exp(-2 r) for the front and -2 exp(-10 q) for the side on the front half, -2 and -exp(-10 q) on the back
  half; 0 for a negative prompt with a share above 0.8.

  Args:
    azimuth: [...], radians, 0 in front of the object.
    elevation: [...], unused: stable-dreamfusion has no overhead prompt.

  Returns:
    (mix [..., 4], weights of the positive prompt over `prompts.VIEWS`; weights [..., 2] of NEGATIVES).
  """
  del elevation
  front, side, back = _shares(azimuth)
  ahead = front > 0.0  # the front half of the circle
  against_front = jnp.where(ahead, jnp.where(front > 0.8, 0.0, -2.0 * jnp.exp(-2.0 * front)), -2.0)
  against_side = jnp.where(side > 0.8, 0.0, jnp.where(ahead, -2.0, -1.0) * jnp.exp(-10.0 * side))
  return _mix(front, side, back), jnp.stack([against_front, against_side], axis=-1)


def threestudio(azimuth: Array, elevation: Array) -> tuple[Array, Array]:
  """Returns the weights of threestudio's defaults.

  Each weight has the paper's form -(a exp(-b r) + c). On the front half (a, b, c) = (4, 0.5, -2.426) for front and
  side, with r the share of the same view in the positive prompt. On the back half r is the share of the side, with
  (1, 0.5, 0.967) for the front and (1, 0.5, -0.606) for the side. Above 60 degrees of elevation the positive prompt is
  the overhead prompt, and the negative weights are 0.

  Args:
    azimuth: [...], radians, 0 in front of the object.
    elevation: [...], radians.

  Returns:
    (mix [..., 4], weights of the positive prompt over `prompts.VIEWS`; weights [..., 2] of NEGATIVES).
  """
  front, side, back = _shares(azimuth)
  ahead = front > 0.0
  against_front = jnp.where(ahead, _decay(4.0, 0.5, -2.426, front), _decay(1.0, 0.5, 0.967, side))
  against_side = jnp.where(ahead, _decay(4.0, 0.5, -2.426, side), _decay(1.0, 0.5, -0.606, side))
  weights = -jnp.stack([against_front, against_side], axis=-1)
  above = (prompts.view_index(azimuth, elevation) == prompts.VIEWS.index("overhead"))[..., None]
  overhead = jnp.zeros(azimuth.shape + (4,)).at[..., prompts.VIEWS.index("overhead")].set(1.0)
  return jnp.where(above, overhead, _mix(front, side, back)), jnp.where(above, 0.0, weights)


VARIANTS: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "stable_dreamfusion": stable_dreamfusion, "threestudio": threestudio}
"""Name -> (azimuth, elevation) -> (mix, weights)."""


def _shares(azimuth: Array) -> tuple[Array, Array, Array]:
  """Returns the shares [...] of front, side and back.

  The shares are linear in azimuth, and their sum is 1.
  """
  # arctan2 of sine and cosine wraps any azimuth to (-pi, pi]; `quarters` is 0 in front, 1 at the side, 2 at the back.
  quarters = jnp.abs(jnp.arctan2(jnp.sin(azimuth), jnp.cos(azimuth))) / (math.pi / 2)
  return jnp.maximum(1 - quarters, 0.0), 1 - jnp.abs(1 - quarters), jnp.maximum(quarters - 1, 0.0)


def _mix(front: Array, side: Array, back: Array) -> Array:
  return jnp.stack([front, side, back, jnp.zeros_like(front)], axis=-1)


def _decay(a: float, b: float, c: float, r: Array) -> Array:
  return a * jnp.exp(-b * r) + c
