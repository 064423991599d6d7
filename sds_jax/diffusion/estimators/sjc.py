"""SJC: SDS in the variance-exploding form.

A network that predicts the noise in z_t = alpha x + sigma eps also does so for every other path with the same
signal-to-noise ratio, since z is only scaled. So the estimator runs with any prior and equals SDS with weight 1.
The paper's own arithmetic is kept, and a test holds the identity.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, for_small_prior
from sds_jax.diffusion.guidance import predict
from sds_jax.diffusion.schedules import at_times, per_example
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
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])). At alpha = 0, where s is infinite, the
    residual is its limit and x0_hat is 0.

  Example: a network that predicts 1 everywhere.
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> x, t = jnp.zeros((1, 2)), jnp.array([500])
    >>> residual, _ = sjc(lambda *a: jnp.ones((1, 2)), None, schedule_from_config({}), x, t, 0.25 + x, None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  wide = x.astype(widened(x))  # x - D(y) is small beside x where s is small, and half precision would lose it
  alpha, sigma = (per_example(at_times(table, t), wide) for table in (schedule.alpha, schedule.sigma))
  # The residual does not depend on s: at alpha = 0 a finite s gives its limit, with the network at pure noise.
  s, noise = sigma / jnp.where(alpha > 0, alpha, 1), eps.astype(wide.dtype)
  y = jnp.where(alpha > 0, wide, 0) + s * noise
  z = (jnp.where(alpha > 0, alpha, 1) * y).astype(x.dtype)
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  denoised = y - s * eps_hat.astype(wide.dtype)
  residual = ((jnp.where(alpha > 0, wide, 0) if control_variate else y) - denoised) / s
  return residual, dict(eps_hat=eps_hat, x0_hat=jnp.where(alpha > 0, denoised, 0).astype(x.dtype))


PUBLISHED = Draw("uniform", guidance_scale=100.0, t_min=0.01, t_max=0.97)

SPEC = Estimator(
    "sjc", sjc, paper="2212.00774", residual="(x - D(x + s e)) / s, s = sigma / alpha: SDS exactly", calls="2",
    published=PUBLISHED, small=for_small_prior(PUBLISHED), source="The authors' code: s = 100.")
