"""SJC: SDS in the variance-exploding form.

A network that predicts the noise in z_t = alpha x + sigma eps also does so for every other path with the same
signal-to-noise ratio, since z is only scaled. So the estimator runs with any prior and equals SDS with weight 1.
The paper's own arithmetic is kept, and a test holds the identity.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.estimators.base import Draw, Estimator, for_small_prior
from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def sjc(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, control_variate: bool = True) -> tuple[Array, dict[str, Array]]:
  """Returns (x - D(y)) / s, y = x + s eps: score Jacobian chaining (arXiv:2212.00774, eq. 8 and 14, and its code).

  s = sigma / alpha. The denoiser D(y) = y - s eps_hat(alpha y) is the network in the variance-exploding form, with
  alpha = 1 / sqrt(1 + s^2) where the schedule preserves variance. The paper perturbs and scores: (y - D(y)) / s equals
  eps_hat; with the control variate the residual equals eps_hat - eps.

  Args:
    denoise_fn ... keys: as `estimators` says.
    control_variate: whether eps is subtracted; the paper's code calls the subtraction variance reduction. Static.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])). At alpha = 0, where s has no value, the
    residual is NaN: keep t below the end of a schedule that ends in pure noise.

  Example: a network that predicts 1 everywhere.
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> x, t = jnp.zeros((1, 2)), jnp.array([500])
    >>> residual, _ = sjc(lambda *a: jnp.ones((1, 2)), None, schedule_from_config({}), x, t, 0.25 + x, None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  wide = x.astype(jnp.float32)  # x - D(y) is small beside x where s is small, and half precision would lose it
  s = per_example(schedule.sigma[t] / schedule.alpha[t], wide)
  y = wide + s * eps.astype(jnp.float32)
  z = (per_example(schedule.alpha[t], wide) * y).astype(x.dtype)
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  denoised = y - s * eps_hat.astype(jnp.float32)
  residual = ((wide if control_variate else y) - denoised) / s
  return residual, dict(eps_hat=eps_hat, x0_hat=denoised.astype(x.dtype))


PUBLISHED = Draw("uniform", guidance_scale=100.0, t_min=0.01, t_max=0.97)

SPEC = Estimator(
    "sjc", sjc, paper="2212.00774", residual="(x - D(x + s e)) / s, s = sigma / alpha: SDS exactly", calls="2",
    published=PUBLISHED, small=for_small_prior(PUBLISHED), source="The authors' code: s = 100.")
