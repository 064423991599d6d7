"""Gradients through networks in float16, whose smallest numbers lose small gradients."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.types import Array, Params


def with_scaled_gradient(function: Callable[[Params, Array], tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
  """Returns the function with a gradient that float16 can hold: loss scaling (arXiv:1710.03740, section 3.2) inside.

  float16 has 5 bits of exponent: a cotangent below 6e-8 is 0, one above 65504 is infinite. Both occur in distillation,
  where weights of losses and numbers of views multiply the gradient. Going back, each example's cotangents are
  multiplied by the power of two that makes the largest about 1, and the gradient is divided by the same factor. So the
  gradient does not depend on the scale of the loss, and no factor has to be chosen.

  The parameters count as constants: their gradient is zero.

  Args:
    function: (params, x [B, ...] float32) -> float32 arrays [B, ...]. Example i of the results depends on example i of
      x alone.
  """
  @jax.custom_vjp
  def scaled(params: Params, x: Array) -> tuple[Array, ...]:
    return function(params, x)

  def forward(params: Params, x: Array) -> tuple[tuple[Array, ...], Any]:
    return jax.vjp(lambda y: function(params, y), x)

  def backward(pull_back: Any, cotangents: Sequence[Array]) -> tuple[None, Array]:
    largest = jnp.stack([jnp.abs(part).max(axis=range(1, part.ndim)) for part in cotangents]).max(axis=0)
    # A power of two changes no digit. The limits keep the factor and its inverse in float32's range.
    exponent = jnp.clip(jnp.frexp(largest)[1], -100, 100)
    exponent = jnp.where(jnp.isfinite(largest) & (largest > 0), exponent, 0)

    def times(part: Array, power: Array) -> Array:
      return part * jnp.ldexp(jnp.ones_like(largest), power).reshape(-1, *[1] * (part.ndim - 1))

    gradient, = pull_back(tuple(times(part, -exponent) for part in cotangents))
    return None, times(gradient, exponent)

  scaled.defvjp(forward, backward)
  return scaled
