"""Sample distances along rays."""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.types import Array, Rays


def stratified(near: Array, far: Array, num_samples: int, jitter: Array) -> tuple[Array, Array]:
  """Places a sample in each of equal intervals.

  The intervals divide [near, far]. All samples of a ray share an offset (systematic sampling): unbiased, with a single
  random number per ray.

  Args:
    near, far: [R], distances along the ray, world units.
    num_samples: S.
    jitter: [R] in [0, 1), the position within the interval; 0.5 for midpoints.

  Returns:
    distances [S, R] and the widths [R] of the intervals.
  """
  width = (far - near) / num_samples
  steps = jnp.arange(num_samples, dtype=near.dtype)
  return near[None] + (steps[:, None] + jitter[None]) * width[None], width


def even_steps(rays: Rays, radius: float, num_samples: int, jitter: Array) -> tuple[Array, Array]:
  """Places samples with the same spacing on all rays.

  The spacing is 2 radius / S, and the samples lie around the point of the ray closest to the origin. Rays near the rim
  of the ball have fewer samples inside the ball than rays through the middle, so a budget shared by all rays goes to
  the rays with more volume.

  Args:
    rays: [R], unit directions.
    radius: of the bounding ball, world units.
    num_samples: S.
    jitter: [R] in [0, 1), the position within the interval.

  Returns:
    distances [S, R] (some outside the ball or negative) and widths [R].
  """
  closest = -jnp.sum(rays.origins * rays.directions, axis=-1)
  return stratified(closest - radius, closest + radius, num_samples, jitter)
