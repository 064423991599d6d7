"""w(t) in the score distillation gradient E[w(t) (eps_hat - eps) dx/dtheta].

Each function takes (schedule, t [B] integer) and returns w [B], float32. DreamFusion (arXiv:2209.14988, eq. 3) absorbs
the constant alpha_t = dz_t/dx into w, and so does this package.
"""
from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array, Schedule


def uniform(schedule: Schedule, t: Array) -> Array:
  """1; DreamFusion found it about as good as sigma^2."""
  return jnp.ones(t.shape, jnp.float32)


def sigma2(schedule: Schedule, t: Array) -> Array:
  """sigma^2, DreamFusion's own choice (arXiv:2209.14988, section 3.2)."""
  return schedule.sigma[t] ** 2


def alpha_sigma2(schedule: Schedule, t: Array) -> Array:
  """alpha sigma^2, little at both ends; the appearance stage of Fantasia3D (arXiv:2303.13873) and its public code."""
  return schedule.alpha[t] * schedule.sigma[t] ** 2


def sigma_over_alpha(schedule: Schedule, t: Array) -> Array:
  """sigma / alpha, which turns the residual into x - x0_hat: the x0-reconstruction loss of MVDream (arXiv:2308.16512).

  The same weight is in the code of interval score matching (LucidDreamer, arXiv:2311.11284). Infinite where alpha = 0.
  """
  return schedule.sigma[t] / schedule.alpha[t]


WeightFn = Callable[[Schedule, Array], Array]

WEIGHTINGS: dict[str, WeightFn] = {
  "uniform": uniform,
  "sigma2": sigma2,
  "alpha_sigma2": alpha_sigma2,
  "sigma_over_alpha": sigma_over_alpha,
}
