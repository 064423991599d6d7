"""w(t) in the score distillation gradient E[w(t) (eps_hat - eps) dx/dtheta].

Each function takes (schedule, t [B] integer) and returns w [B], float32. DreamFusion (arXiv:2209.14988, eq. 3) absorbs
the constant alpha_t = dz_t/dx into w, and so does this package.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> schedule, t = flow_schedule(4), jnp.array([0, 1])          # sigma = 1/4 and 1/2
  >>> print(uniform(schedule, t), sigma2(schedule, t), sigma_over_alpha(schedule, t))
  [1. 1.] [0.0625 0.25  ] [0.33333334 1.        ]
"""
from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array, Schedule


def uniform(schedule: Schedule, t: Array) -> Array:
  """1; DreamFusion found it about as good as sigma^2.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(uniform(flow_schedule(4), jnp.array([0, 1])))
  [1. 1.]
  """
  return jnp.ones(t.shape, jnp.float32)


def sigma2(schedule: Schedule, t: Array) -> Array:
  """sigma^2, DreamFusion's own choice (arXiv:2209.14988, section 3.2).

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(sigma2(flow_schedule(4), jnp.array([0, 1])))
  [0.0625 0.25  ]
  """
  return schedule.sigma[t] ** 2


def alpha_sigma2(schedule: Schedule, t: Array) -> Array:
  """alpha sigma^2, little at both ends; the appearance stage of Fantasia3D (arXiv:2303.13873) and its public code.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(alpha_sigma2(flow_schedule(4), jnp.array([0, 1])))
  [0.046875 0.125   ]
  """
  return schedule.alpha[t] * schedule.sigma[t] ** 2


def sigma_over_alpha(schedule: Schedule, t: Array) -> Array:
  """sigma / alpha, which turns the residual into x - x0_hat: the x0-reconstruction loss of MVDream (arXiv:2308.16512).

  The same weight is in the code of interval score matching (LucidDreamer, arXiv:2311.11284). Infinite where alpha = 0.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(sigma_over_alpha(flow_schedule(4), jnp.array([1, 2])))
  [1. 3.]
  """
  return schedule.sigma[t] / schedule.alpha[t]


def min_snr(schedule: Schedule, t: Array) -> Array:
  """min(SNR, 5) / SNR, which holds little noise back: Min-SNR-5 (arXiv:2303.09556, eq. 6, for a noise prediction).

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(f'{min_snr(flow_schedule(4), jnp.array([0]))[0]:.4f}')  # SNR = 9, held at 5: 5 / 9
  0.5556
  """
  snr = (schedule.alpha[t] / schedule.sigma[t]) ** 2
  return jnp.minimum(snr, 5.0) / jnp.maximum(snr, 1e-12)


def logit_normal(schedule: Schedule, t: Array) -> Array:
  """Density of a logit-normal time at the straight path's tau = sigma / (alpha + sigma) (arXiv:2403.03206, eq. 19).

  Mean 0 and standard deviation 1 before the logistic function; largest in the middle, 0 at both ends.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(f'{logit_normal(flow_schedule(4), jnp.array([1]))[0]:.3f}')  # 4 / sqrt(2 pi)
  1.596
  """
  tau = jnp.clip(schedule.sigma[t] / (schedule.alpha[t] + schedule.sigma[t]), 1e-6, 1 - 1e-6)
  logit = jnp.log(tau / (1 - tau))
  return jnp.exp(-0.5 * logit**2) / (jnp.sqrt(2 * jnp.pi) * tau * (1 - tau))


def dreamtime(schedule: Schedule, t: Array, m1: float = 0.8, m2: float = 0.5, s1: float = 0.3,
              s2: float = 0.1) -> Array:
  """W(t) of DreamTime (arXiv:2306.12422): 1 from m2 to m1, falling off like a Gaussian of width s1 above, s2 below.

  Args:
    m1, m2, s1, s2: fractions of the schedule; the 800, 500, 300, 100 of 1000 that public code has. (A later version of
      the paper has one Gaussian and a factor sigma / alpha instead.)

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(dreamtime(flow_schedule(10), jnp.array([4, 5, 8])))
  [0.60653067 1.         1.        ]
  """
  time = t / schedule.alpha.shape[0]
  beyond = jnp.where(time > m1, (time - m1) / s1, jnp.where(time < m2, (m2 - time) / s2, 0.0))
  return jnp.exp(-0.5 * beyond**2)


WeightFn = Callable[[Schedule, Array], Array]

WEIGHTINGS: dict[str, WeightFn] = {
  "uniform": uniform,
  "sigma2": sigma2,
  "alpha_sigma2": alpha_sigma2,
  "sigma_over_alpha": sigma_over_alpha,
  "min_snr": min_snr,
  "logit_normal": logit_normal,
  "dreamtime": dreamtime,
}
