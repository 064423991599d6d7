"""The volume rendering quadrature (Max 1995; NeRF, arXiv 2003.08934, eq. 3)."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.types import Array


def transmittance(optical_depth: Array) -> Array:
  """Computes the transmittance before each interval.

  T_i = exp(-sum_{j<i} sigma_j delta_j).

  Args:
    optical_depth: [S, R], sigma_i delta_i, ordered from the camera.

  Returns:
    [S, R].
  """
  return jnp.exp(-exclusive_sum(optical_depth))


def weights(optical_depth: Array) -> Array:
  """Computes compositing weights from optical depths, [S, R].

  w_i = T_i (1 - exp(-sigma_i delta_i)) is the share of the ray's light from interval i.
  """
  # expm1 keeps the digits of thin intervals, where 1 - exp(-x) cancels in float32.
  return transmittance(optical_depth) * -jnp.expm1(-optical_depth)


def exclusive_sum(values: Array) -> Array:
  """Sums the preceding entries along axis 0 of [S, R]."""
  # A product with a strictly triangular matrix: S is small, so the product beats a scan on every backend, and the
  # transpose for the gradient is another such product. HIGHEST: TF32 or bfloat16 would round the optical depths.
  steps = values.shape[0]
  before = jnp.tri(steps, k=-1, dtype=values.dtype)
  return jnp.dot(before, values, precision=jax.lax.Precision.HIGHEST)
