"""The volume rendering quadrature (Max 1995; NeRF, arXiv 2003.08934, eq. 3)."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.types import Array


def transmittance(optical_depth: Array) -> Array:
  """T_i = exp(-sum_{j<i} sigma_j delta_j) for optical depths sigma delta [S, R] ordered from the camera: [S, R]."""
  return jnp.exp(-exclusive_sum(optical_depth))


def weights(optical_depth: Array) -> Array:
  """w_i = T_i (1 - exp(-sigma_i delta_i)), the share of the ray that ends in interval i: [S, R] -> [S, R]."""
  return transmittance(optical_depth) * -jnp.expm1(-optical_depth)


def exclusive_sum(values: Array) -> Array:
  """Sum of the entries before each one, along axis 0 of [S, R].

  As a product with a strictly triangular matrix: S is small, so this beats a scan on every backend and transposes to
  another such product.
  """
  steps = values.shape[0]
  before = jnp.tri(steps, k=-1, dtype=values.dtype)
  return jnp.dot(before, values, precision=jax.lax.Precision.HIGHEST)
