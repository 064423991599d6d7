"""SDS as it was written for other kinds of network: exploding variance (SJC), and straight paths (rectified flow).

A network that knows z_t = alpha x + sigma eps knows every other path with the same signal-to-noise ratio, since z is
only scaled. So both run with any prior, and both are SDS with another weight: SJC with 1, RFDS with 1 / (1 - tau).
Their own arithmetic is kept, and a test holds the identity.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.parameterizations import (eps_from_flow, flow_from_eps, flow_interpolate, flow_velocity,
                                                 x0_from_flow)
from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def sjc(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, control_variate: bool = True) -> tuple[Array, dict[str, Array]]:
  """Score Jacobian chaining: (x - D(y)) / s with y = x + s eps (arXiv:2212.00774, eq. 8 and 14; its public code).

  s = sigma / alpha, and the denoiser D(y) = y - s eps_hat(alpha y) is the network seen as one of exploding variance,
  alpha = 1 / sqrt(1 + s^2) where the schedule preserves variance. The paper perturbs and scores: (y - D(y)) / s, which
  is eps_hat; less eps, it is eps_hat - eps.

  Args:
    denoise_fn ... keys: as `estimators` says.
    control_variate: whether eps is taken off, which the paper's code calls variance reduction.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])). At alpha = 0, where s has no value, it is NaN:
    keep t below the end of a schedule that ends in pure noise.

  Example: a network that says 1 of everything.
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


def rfds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
         keys: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """Rectified-flow distillation: v_hat(z_tau) - (eps - x), z_tau = (1 - tau) x + tau eps (arXiv:2406.03293).

  tau = sigma / (alpha + sigma) is the straight path's time with the signal-to-noise ratio of t, and v_hat the velocity
  that the network's noise prediction means there. A schedule of a rectified flow (`schedules.flow_schedule`) has
  tau = sigma.

  Args:
    denoise_fn ... keys: as `estimators` says; denoise_fn predicts noise (`velocity_denoiser` makes it of a velocity).

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])); residual = (eps_hat - eps) / (1 - tau),
    but at tau = 1, where noise says nothing of a velocity and 0 stands for it. The published code multiplies it by
    sigmoid of a normal number that has nothing to do with t: its mean of 1/2 is left to the learning rate here.

  Example: a network that says 1 of everything, where tau = 1/2.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.zeros((1, 2)), jnp.array([499])
    >>> residual, _ = rfds(lambda *a: jnp.ones((1, 2)), None, flow_schedule(1000), x, t, 0.25 + x, None)
    >>> print(residual)
    [[1.5 1.5]]
  """
  total = schedule.alpha[t] + schedule.sigma[t]
  tau = schedule.sigma[t] / total
  wide, noise = x.astype(jnp.float32), eps.astype(jnp.float32)  # the velocity is of a quotient that is 0 / 0 at tau = 1
  z = flow_interpolate(wide, noise, tau)
  eps_hat = denoise_fn(params, (per_example(total, z) * z).astype(x.dtype), t, cond).astype(x.dtype)
  velocity = flow_from_eps(z, tau, eps_hat.astype(jnp.float32))
  residual = velocity - flow_velocity(wide, noise)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_flow(z, tau, velocity).astype(x.dtype))


def velocity_denoiser(velocity_fn: DenoiseFn, schedule: Schedule) -> DenoiseFn:
  """The noise predictor of a network that predicts a straight path's velocity eps - x.

  Args:
    velocity_fn: (params, z [B, ...], time [B] float32 in (0, 1], cond) -> velocity [B, ...].
    schedule: of `schedules.flow_schedule`; it says what time an integer t is.

  Returns:
    A DenoiseFn, for `score_distillation` and everything else here.

  Example:
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> denoise = velocity_denoiser(lambda params, z, time, cond: jnp.zeros_like(z), flow_schedule(4))
    >>> print(denoise(None, jnp.ones((1, 2)), jnp.array([1]), None))
    [[1. 1.]]
  """
  def denoise(params: Params, z: Array, t: Array, cond: Any) -> Array:
    time = schedule.sigma[t]
    return eps_from_flow(z, time, velocity_fn(params, z, time, cond))

  return denoise
