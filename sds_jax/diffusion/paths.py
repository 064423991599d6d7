"""The deterministic path of a diffusion model, in steps of DDIM (arXiv:2010.02502, eq. 12 without noise).

One step takes z from the noise level of one time to that of another, in either direction, by way of the clean image
that follows from the prediction:

  x0_hat = (z - sigma eps_hat) / alpha,   z' = alpha' x0_hat + sigma' eps_hat

Upwards the path is an inversion: it ends in noise from which the model would make this very image.
"""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import at_times, per_example
from sds_jax.types import Array, Schedule


def ddim_step(schedule: Schedule, z: Array, eps_hat: Array, t: Array, t_next: Array) -> Array:
  """Returns z at the time `t_next` from z at the time `t`.

  The prediction is fixed.

  Args:
    schedule: of the prior.
    z, eps_hat: [B, ...], noisy image and predicted noise.
    t, t_next: [B] integer times.

  Example: a step to the same time changes nothing.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> z, t = jnp.ones((1, 2)), jnp.array([1])
    >>> print(ddim_step(flow_schedule(4), z, 0.5 * z, t, t), ddim_step(flow_schedule(4), z, 0.5 * z, t, t + 1))
    [[1. 1.]] [[0.75 0.75]]
  """
  x0_hat = x0_from_eps(schedule, z, t, eps_hat)
  alpha, sigma = at_times(schedule.alpha, t_next), at_times(schedule.sigma, t_next)
  return per_example(alpha, z) * x0_hat + per_example(sigma, z) * eps_hat


def invert(predict: Callable[[Array, Array], Array], schedule: Schedule, x: Array, times: Array,
           kicks: Array | None = None) -> tuple[Array, Array]:
  """Returns a clean image taken up to noise, by DDIM.

  Args:
    predict: (z [B, ...], t [B]) -> eps_hat [B, ...]; called once a step, in one `lax.scan`.
    schedule: of the prior.
    x: [B, ...], taken for z at the first time.
    times: [n + 1, B] integer, not falling; where one equals the next, z stays.
    kicks: [n, B, ...], multiples of the noise of a random DDPM step, added after each step; None: no noise.

  Returns:
    (z [B, ...] at times[-1], the last prediction [B, ...], made at times[-2]).

  Example: with a network that predicts 0 the image only fades.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> z, _ = invert(lambda z, t: 0 * z, flow_schedule(4), jnp.ones((1, 2)), jnp.array([[0], [1], [2]]))
    >>> print(z)
    [[0.33333334 0.33333334]]
  """
  def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array | None]) -> tuple[tuple[Array, Array], None]:
    z, _ = carry
    t, t_next, kick = inputs
    # The carry of lax.scan keeps its dtype, whatever the dtype of the network.
    eps_hat = predict(z, t).astype(z.dtype)
    z = ddim_step(schedule, z, eps_hat, t, t_next)
    if kick is not None:
      z += per_example(_kick_size(schedule, t, t_next), z) * kick
    return (z, eps_hat), None

  # In a scan the network is compiled once, however many the strides.
  end, _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), (times[:-1], times[1:], kicks))
  return end


def _kick_size(schedule: Schedule, t: Array, t_next: Array) -> Array:
  """Returns the deviation of DDPM's noise between t and t_next > t; 0 at t.

  The source is arXiv:2010.02502, eq. 16, with eta = 1.

  The equation is one of variance-preserving schedules. On another schedule the deviation is that of the path of the
  same signal-to-noise ratios, scaled with z at t_next.
  """
  alpha, sigma = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)
  total = alpha**2 + sigma**2  # 1 where the schedule preserves variance
  share = alpha**2 / total
  low, high = at_times(share, t), at_times(share, t_next)
  kept = jnp.where(low > 0, high / jnp.where(low > 0, low, 1.0), 1.0)  # at pure noise there is no further step
  variance = (1 - low) / jnp.where(high < 1, 1 - high, 1.0) * (1 - kept)
  # Rounding of `share` may take the variance just below 0, and its root would be NaN.
  return jnp.sqrt(jnp.maximum(variance * at_times(total, t_next), 0.0))


def rising_times(schedule: Schedule, top: Array, stride: float, steps: int, start: float) -> Array:
  """Returns times that rise from `start` in strides until `top`, and stay at `top`.

  Args:
    schedule: of the prior.
    top: [B] integer, the last time, however few the steps.
    stride, start: fractions of the schedule.
    steps: number of strides.

  Returns:
    [steps + 1, B] integer, for `invert`.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> print(rising_times(flow_schedule(10), jnp.array([5]), 0.2, 4, 0.1)[:, 0])
  [1 3 5 5 5]
  """
  first, width = (int(fraction * schedule.alpha.shape[0]) for fraction in (start, stride))
  # At least one time a stride, or the path would never rise.
  times = jnp.minimum(first + max(width, 1) * jnp.arange(steps + 1, dtype=top.dtype)[:, None], top[None])
  # Too few strides would end below `top`, but the estimators query the network at exactly `top`.
  return times.at[-1].set(top)
