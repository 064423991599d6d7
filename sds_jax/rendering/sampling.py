"""Where rays meet the bounding ball, and sample distances along them."""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.types import Array, Rays


def intersect_ball(rays: Rays, radius: float) -> tuple[Array, Array]:
  """Distances (near, far) [R] >= 0 at which unit rays enter and leave the ball around the origin; equal on a miss."""
  closest = -jnp.sum(rays.origins * rays.directions, axis=-1)
  distance_squared = jnp.sum((rays.origins + closest[:, None] * rays.directions)**2, axis=-1)
  half_chord = jnp.sqrt(jnp.maximum(radius**2 - distance_squared, 0.0))
  return jnp.maximum(closest - half_chord, 0.0), jnp.maximum(closest + half_chord, 0.0)


def stratified(near: Array, far: Array, num_samples: int, jitter: Array) -> tuple[Array, Array]:
  """One sample in each of `num_samples` equal intervals of [near, far].

  A ray's samples share one offset (systematic sampling): unbiased, and one random number a ray instead of one a sample.

  Args:
    near, far: [R].
    num_samples: S.
    jitter: [R] in [0, 1), the place within the interval; 0.5 for midpoints.

  Returns:
    distances [S, R] and the intervals' widths [R].
  """
  width = (far - near) / num_samples
  steps = jnp.arange(num_samples, dtype=near.dtype)
  return near[None] + (steps[:, None] + jitter[None]) * width[None], width


def even_steps(rays: Rays, radius: float, num_samples: int, jitter: Array) -> tuple[Array, Array]:
  """Samples of one world-space width 2 radius / S for all rays, around the point closest to the origin.

  Rays that graze the ball then have fewer samples inside it than rays through its middle, and a budget shared by all
  rays goes where there is volume. Returns distances [S, R] (some outside of the ball or negative) and widths [R].
  """
  closest = -jnp.sum(rays.origins * rays.directions, axis=-1)
  return stratified(closest - radius, closest + radius, num_samples, jitter)
