"""RFDS: SDS on the straight path of a rectified flow.

A network that predicts the noise in z_t = alpha x + sigma eps also does so for every other path with the same
signal-to-noise ratio, since z is only scaled. So the estimator runs with any prior and equals SDS with weight
1 / (1 - tau). The paper's own arithmetic is kept, and a test holds the identity.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp  # noqa: F401 (of the example)

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, for_small_prior
from sds_jax.diffusion.guidance import predict
from sds_jax.diffusion.parameterizations import flow_from_eps, flow_interpolate, flow_velocity, x0_from_flow
from sds_jax.diffusion.schedules import at_times, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def rfds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
         keys: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """Returns v_hat(z_tau) - (eps - x), z_tau = (1 - tau) x + tau eps: rectified-flow distillation (arXiv:2406.03293).

  tau = sigma / (alpha + sigma) is the time on the straight path with the signal-to-noise ratio of t. v_hat is the
  velocity that follows from the network's noise prediction there. A schedule of a rectified flow
  (`schedules.flow_schedule`) has tau = sigma.

  Args:
    denoise_fn ... keys: as `estimators` says; denoise_fn predicts noise (`parameterizations.velocity_denoiser` turns a
      network that predicts velocity into such a function).

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])); residual = (eps_hat - eps) / (1 - tau). At
    tau = 1 the noise does not determine the velocity, and the velocity is taken as 0. The published code multiplies the
    residual by the sigmoid of a normal number, independent of t; that factor's mean, 1/2, is left to the learning rate.

  Example: a network that predicts 1 everywhere, where tau = 1/2.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.zeros((1, 2)), jnp.array([499])
    >>> residual, _ = rfds(lambda *a: jnp.ones((1, 2)), None, flow_schedule(1000), x, t, 0.25 + x, None)
    >>> print(residual)
    [[1.5 1.5]]
  """
  total = at_times(schedule.alpha, t) + at_times(schedule.sigma, t)
  tau = at_times(schedule.sigma, t) / total
  wide, noise = x.astype(widened(x)), eps.astype(widened(x))  # the velocity is of a quotient that is 0 / 0 at tau = 1
  z = flow_interpolate(wide, noise, tau)
  # total z = alpha x + sigma eps: the network gets its input on the path of its training.
  eps_hat = predict(denoise_fn, params, (per_example(total, z) * z).astype(x.dtype), t, cond).astype(x.dtype)
  velocity = flow_from_eps(z, tau, eps_hat.astype(wide.dtype))
  residual = velocity - flow_velocity(wide, noise)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_flow(z, tau, velocity).astype(x.dtype))


PUBLISHED = Draw("uniform", guidance_scale=100.0, t_max=0.7)

SPEC = Estimator(
    "rfds", rfds, paper="2406.03293", residual="v_g - (e - x) on a straight path: SDS with another weight", calls="2",
    published=PUBLISHED, small=for_small_prior(PUBLISHED),
    source="The authors' code with Stable Diffusion 3, without the random factor of its loss. The code counts steps "
           "from the noisy end.")
