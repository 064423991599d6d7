"""Frequency encodings of points, plain and integrated (mip-NeRF, arXiv 2103.13415)."""
from __future__ import annotations

import math

import jax.numpy as jnp

from sds_jax.types import Array


def positional_encoding(points: Array, num_octaves: int, base: float = math.pi, identity: bool = True) -> Array:
  """sin and cos of base 2^l x for l < num_octaves: [N, 3] -> [N, 3 * (identity + 2 num_octaves)].

  Order: the point itself (where `identity`), then for each octave the sines of x, y, z and their cosines.
  """
  return integrated_positional_encoding(points, jnp.zeros((), points.dtype), num_octaves, base, identity)


def integrated_positional_encoding(points: Array, variance: Array, num_octaves: int, base: float = math.pi,
                                   identity: bool = True) -> Array:
  """The mean of the positional encoding over Gaussians N(point, variance I): mip-NeRF, eq. 13-14.

  E[sin(w x)] = sin(w mean) exp(-w^2 variance / 2), so an octave fades out once it varies within the Gaussian.

  Args:
    points: [N, D] means, world units.
    variance: [] or [N], world units squared.
    num_octaves: how many frequencies base 2^l, l = 0, 1, ...
    base: lowest angular frequency.
    identity: whether the mean itself comes first.

  Returns:
    [N, D * (identity + 2 num_octaves)].
  """
  # Computed feature-major, [D, N], so that rows are long and joining them is a copy; the last transpose is free, for
  # the matrix product that follows takes either layout. Higher octaves by the double-angle recurrence:
  # sin 2a = 2 sin a cos a, cos 2a = 1 - 2 sin^2 a (2x faster on CPU than sin and cos of each).
  x = points.T
  sin, cos = jnp.sin(base * x), jnp.cos(base * x)
  rows = [x] if identity else []
  variance = variance[None] if variance.ndim == 1 else jnp.reshape(variance, (1, 1))
  for octave in range(num_octaves):
    if octave:
      sin, cos = 2 * sin * cos, 1 - 2 * sin * sin
    damping = jnp.exp(-0.5 * (base * 2**octave)**2 * variance)
    rows += [sin * damping, cos * damping]
  return jnp.concatenate(rows, axis=0).T


def annealed_variance(progress: Array, start: float = 5e-2, end: float = 2e-3, duration: float = 1 / 3) -> Array:
  """DreamFusion's variance of the integrated encoding [], linear in training progress [] in [0, 1], then constant."""
  return start + (end - start) * jnp.clip(progress / duration, 0.0, 1.0)
