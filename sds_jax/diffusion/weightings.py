"""Weights w(t) of the score distillation gradient E[w(t) (eps_hat - eps) dx/dtheta].

Each function takes (schedule, t [B] integer) and returns w [B], float32. As in DreamFusion (arXiv:2209.14988, eq. 3), w
includes the constant alpha_t = dz_t/dx.

The scale of a weight depends on the schedule. On variance-preserving and flow schedules sigma is at most 1, and so is
sigma2, the default. On a variance-exploding schedule (alpha = 1) sigma2 grows to sigma_max^2, to 6,400 at sigma = 80.
The largest times then decide the gradient, and learning rate, `scale` and `clip_norm` have to fit. `uniform` and
`min_snr` stay at most 1 on every schedule.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> schedule, t = flow_schedule(4), jnp.array([0, 1])          # sigma = 1/4 and 1/2
  >>> print(uniform(schedule, t), sigma2(schedule, t), sigma_over_alpha(schedule, t))
  [1. 1.] [0.0625 0.25  ] [0.33333334 1.        ]
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax.typing import ArrayLike

from sds_jax.diffusion.schedules import at_times
from sds_jax.types import Array, Schedule


def uniform(schedule: Schedule, t: Array) -> Array:
  """Returns 1, about as good as sigma^2 in DreamFusion.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(uniform(flow_schedule(4), jnp.array([0, 1])))
  [1. 1.]
  """
  return jnp.ones(t.shape, jnp.float32)


def sigma2(schedule: Schedule, t: Array) -> Array:
  """Returns sigma^2, the weight of DreamFusion (arXiv:2209.14988, section 3.2).

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(sigma2(flow_schedule(4), jnp.array([0, 1])))
  [0.0625 0.25  ]
  """
  return at_times(schedule.sigma, t) ** 2


def alpha_sigma2(schedule: Schedule, t: Array) -> Array:
  """Returns alpha sigma^2, small at both ends.

  The appearance stage of Fantasia3D (arXiv:2303.13873) has this weight in its public code.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(alpha_sigma2(flow_schedule(4), jnp.array([0, 1])))
  [0.046875 0.125   ]
  """
  return at_times(schedule.alpha, t) * at_times(schedule.sigma, t) ** 2


def sigma_over_alpha(schedule: Schedule, t: Array) -> Array:
  """Returns sigma / alpha, and 0 at alpha = 0.

  The weighted residual is x - x0_hat, the gradient of the x0-reconstruction loss of MVDream (arXiv:2308.16512). The
  code of interval score matching uses the same weight (LucidDreamer, arXiv:2311.11284).

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(sigma_over_alpha(flow_schedule(4), jnp.array([1, 2])))
  [1. 3.]
  """
  # At alpha = 0 z_t holds nothing of x, and neither x0_hat nor x - x0_hat has a value.
  alpha, sigma = at_times(schedule.alpha, t), at_times(schedule.sigma, t)
  return jnp.where(alpha > 0, sigma / jnp.where(alpha > 0, alpha, 1.0), 0.0)


def min_snr(schedule: Schedule, t: Array) -> Array:
  """Returns min(SNR, 5) / SNR, small at low noise: Min-SNR-5.

  arXiv:2303.09556, eq. 6, for a noise prediction.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(f'{min_snr(flow_schedule(4), jnp.array([0]))[0]:.4f}')  # SNR = 9, limited to 5: 5 / 9
  0.5556
  """
  snr = (at_times(schedule.alpha, t) / at_times(schedule.sigma, t)) ** 2
  return jnp.minimum(1.0, 5.0 / snr)  # 1 at alpha = 0, where the quotient is infinite


def logit_normal(schedule: Schedule, t: Array) -> Array:
  """Returns the logit-normal density of the time tau.

  tau = sigma / (alpha + sigma) is the time of the straight path (arXiv:2403.03206, eq. 19). Mean 0 and standard
  deviation 1 before the logistic function; largest in the middle, 0 at both ends.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(f'{logit_normal(flow_schedule(4), jnp.array([1]))[0]:.3f}')  # 4 / sqrt(2 pi)
  1.596
  """
  # Clipped, because the density divides by tau (1 - tau); at the clipped ends the density is practically 0.
  alpha, sigma = at_times(schedule.alpha, t), at_times(schedule.sigma, t)
  tau = jnp.clip(sigma / (alpha + sigma), 1e-6, 1 - 1e-6)
  # On a straight path tau is the time itself; on other paths the time of equal SNR.
  logit = jnp.log(tau / (1 - tau))
  return jnp.exp(-0.5 * logit**2) / (jnp.sqrt(2 * jnp.pi) * tau * (1 - tau))


def dreamtime(schedule: Schedule, t: Array, m1: float = 0.8, m2: float = 0.5, s1: float = 0.3,
              s2: float = 0.1) -> Array:
  """Returns W(t) of DreamTime.

  W is 1 from m2 to m1, with Gaussian tails (arXiv:2306.12422); a later version of the paper has a single Gaussian and a
  factor sigma / alpha.

  Args:
    schedule: of the noise.
    t: [B] integer.
    m1, m2: ends of the plateau, fractions of the schedule; 800 and 500 of 1000 in the public code.
    s1, s2: widths of the tails above and below, fractions of the schedule; 300 and 100 of 1000 in the public code.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(dreamtime(flow_schedule(10), jnp.array([4, 5, 8])))
  [0.60653067 1.         1.        ]
  """
  # True division of integers gives float32 fractions of the schedule.
  time = t / schedule.alpha.shape[0]
  beyond = jnp.where(time > m1, (time - m1) / s1, jnp.where(time < m2, (m2 - time) / s2, 0.0))
  return jnp.exp(-0.5 * beyond**2)


WeightFn: TypeAlias = Callable[[Schedule, Array], ArrayLike]
"""(schedule, t [B] integer) -> w [B], or a number for all examples."""

WEIGHTINGS: dict[str, WeightFn] = {
  "uniform": uniform,
  "sigma2": sigma2,
  "alpha_sigma2": alpha_sigma2,
  "sigma_over_alpha": sigma_over_alpha,
  "min_snr": min_snr,
  "logit_normal": logit_normal,
  "dreamtime": dreamtime,
}
"""Name in settings -> weight."""
