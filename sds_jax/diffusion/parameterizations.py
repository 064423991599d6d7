"""Conversions between network outputs: the noise eps, the clean x0, the velocity v, the flow of a straight path.

Variance-preserving path, z_t = alpha x0 + sigma eps, v = alpha eps - sigma x0 (arXiv:2202.00512, appendix D). Functions
take (schedule, z_t [B, ...], t [B] integer, prediction [B, ...]) and return an array like z_t.

Two conversions are undefined at an end of the path: at alpha = 0 (pure noise, the last step of a zero-SNR schedule) z_t
does not depend on x0, and at sigma = 0 not on eps. The undefined value is replaced by its mean 0, so no value becomes
infinite. Conversions from v are defined everywhere.

Rectified flow (arXiv:2209.03003), z = (1 - t) x0 + t eps with velocity u = dz/dt = eps - x0, has t in [0, 1] for time.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.schedules import at_times, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def _coefficients(schedule: Schedule, z: Array, t: Array) -> tuple[Array, Array]:
  return per_example(at_times(schedule.alpha, t), z), per_example(at_times(schedule.sigma, t), z)


def _divide_or_zero(numerator: Array, denominator: Array) -> Array:
  """Divides, with 0 for a zero denominator."""
  defined = denominator != 0
  # Without the inner `where` the gradient at a zero denominator would be NaN: 0 times infinity.
  return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 0)


def x0_from_eps(schedule: Schedule, z: Array, t: Array, eps: Array) -> Array:
  """Computes x0 = (z - sigma eps) / alpha.

  x0 is 0 at alpha = 0.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(x0_from_eps(schedule, z, t, 0.5 * z))
  [[0.875 0.875]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  return _divide_or_zero(z - sigma * eps, alpha)


def x0_from_v(schedule: Schedule, z: Array, t: Array, v: Array) -> Array:
  """Computes x0 = alpha z - sigma v.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(x0_from_v(schedule, z, t, 0.5 * z))
  [[0.5 0.5]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  # The rotation (z, v) -> (x0, eps) is orthogonal, so no division is needed.
  return alpha * z - sigma * v


def eps_from_x0(schedule: Schedule, z: Array, t: Array, x0: Array) -> Array:
  """Computes eps = (z - alpha x0) / sigma.

  eps is 0 at sigma = 0.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(eps_from_x0(schedule, z, t, 0.5 * z))
  [[1. 1.]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  return _divide_or_zero(z - alpha * x0, sigma)


def eps_from_v(schedule: Schedule, z: Array, t: Array, v: Array) -> Array:
  """Computes eps = alpha v + sigma z.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(eps_from_v(schedule, z, t, 0.5 * z))
  [[1. 1.]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  # The second row of the same rotation.
  return alpha * v + sigma * z


def v_from_eps(schedule: Schedule, z: Array, t: Array, eps: Array) -> Array:
  """Computes v = alpha eps - sigma x0, with x0 of `x0_from_eps`.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(v_from_eps(schedule, z, t, eps_from_v(schedule, z, t, 0.5 * z)))
  [[0.5 0.5]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  return alpha * eps - sigma * x0_from_eps(schedule, z, t, eps)


def v_from_x0(schedule: Schedule, z: Array, t: Array, x0: Array) -> Array:
  """Computes v = alpha eps - sigma x0, with eps of `eps_from_x0`.

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(num_train_timesteps=1, beta_start=0.36, beta_end=0.36))
  >>> z, t = jnp.ones((1, 2)), jnp.array([0])  # alpha = 0.8, sigma = 0.6
  >>> print(v_from_x0(schedule, z, t, x0_from_v(schedule, z, t, 0.5 * z)))
  [[0.5 0.5]]
  """
  alpha, sigma = _coefficients(schedule, z, t)
  return alpha * eps_from_x0(schedule, z, t, x0) - sigma * x0


def _eps_from_eps(schedule: Schedule, z: Array, t: Array, eps: Array) -> Array:
  return eps


def _x0_from_x0(schedule: Schedule, z: Array, t: Array, x0: Array) -> Array:
  return x0


# All functions have a common signature, so callers need no case distinction.
EPS_FROM = {"epsilon": _eps_from_eps, "v_prediction": eps_from_v, "sample": eps_from_x0}
"""`prediction_type` of a scheduler config -> function from the network output to the noise."""
X0_FROM = {"epsilon": x0_from_eps, "v_prediction": x0_from_v, "sample": _x0_from_x0}
"""`prediction_type` of a scheduler config -> function from the network output to the clean image."""


def flow_interpolate(x0: Array, eps: Array, t: Array) -> Array:
  """Computes z = (1 - t) x0 + t eps.

  x0 and eps are [B, ...]; t is [B], in [0, 1].

  >>> print(flow_interpolate(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([0.25])))
  [[0.75 0.75]]
  """
  # Time 0 is clean and time 1 is pure noise.
  t = per_example(t, x0)
  return (1 - t) * x0 + t * eps


def flow_velocity(x0: Array, eps: Array) -> Array:
  """Computes u = eps - x0, the constant velocity.

  >>> print(flow_velocity(jnp.ones((1, 2)), jnp.zeros((1, 2))))
  [[-1. -1.]]
  """
  return eps - x0


def x0_from_flow(z: Array, t: Array, u: Array) -> Array:
  """Computes x0 = z - t u.

  >>> print(x0_from_flow(jnp.full((1, 2), 0.75), jnp.array([0.25]), jnp.full((1, 2), -1.0)))
  [[1. 1.]]
  """
  return z - per_example(t, z) * u


def eps_from_flow(z: Array, t: Array, u: Array) -> Array:
  """Computes eps = z + (1 - t) u.

  >>> print(eps_from_flow(jnp.full((1, 2), 0.75), jnp.array([0.25]), jnp.full((1, 2), -1.0)))
  [[0. 0.]]
  """
  return z + (1 - per_example(t, z)) * u


def flow_from_x0(z: Array, t: Array, x0: Array) -> Array:
  """Computes u = (z - x0) / t.

  u is 0 at t = 0, where z does not depend on eps.

  >>> print(flow_from_x0(jnp.full((1, 2), 0.75), jnp.array([0.25]), jnp.ones((1, 2))))
  [[-1. -1.]]
  """
  return _divide_or_zero(z - x0, per_example(t, z))


def flow_from_eps(z: Array, t: Array, eps: Array) -> Array:
  """Computes u = (eps - z) / (1 - t).

  u is 0 at t = 1, where z does not depend on x0.

  >>> print(flow_from_eps(jnp.full((1, 2), 0.75), jnp.array([0.25]), jnp.zeros((1, 2))))
  [[-1. -1.]]
  """
  return _divide_or_zero(eps - z, 1 - per_example(t, z))


def velocity_denoiser(velocity_fn: DenoiseFn, schedule: Schedule) -> DenoiseFn:
  """Returns the noise predictor of a velocity network for a straight path.

  Args:
    velocity_fn: (params, z [B, ...], time [B] float32 in (0, 1], cond) -> velocity [B, ...].
    schedule: of `schedules.flow_schedule`; sigma[t] is the time of the integer t.

  Returns:
    A DenoiseFn, for `score_distillation` and `guidance.guided`.

  Example:
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> denoise = velocity_denoiser(lambda params, z, time, cond: jnp.zeros_like(z), flow_schedule(4))
    >>> print(denoise(None, jnp.ones((1, 2)), jnp.array([1]), None))
    [[1. 1.]]
  """
  def denoise(params: Params, z: Array, t: Array, cond: Any) -> Array:
    time = at_times(schedule.sigma, t)  # on a straight path sigma is the time
    return eps_from_flow(z, time, velocity_fn(params, z, time, cond))

  return denoise
