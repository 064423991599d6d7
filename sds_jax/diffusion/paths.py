"""The deterministic path of a diffusion model, and the estimators that walk along it: ISM, SDI, CDS.

One DDIM step (arXiv:2010.02502, eq. 12 without noise) takes z from the noise level of one time to that of another, in
either direction, by way of the clean image that the prediction means:

  x0_hat = (z - sigma eps_hat) / alpha,   z' = alpha' x0_hat + sigma' eps_hat

Upwards it is an inversion: it finds noise from which the model would make this very image.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.guidance import Guided, unconditional
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def ddim_step(schedule: Schedule, z: Array, eps_hat: Array, t: Array, t_next: Array) -> Array:
  """z at `t_next` of z at `t` [B, ...], both [B] integer, with the prediction eps_hat [B, ...] held on to.

  Example: on to the same time, nothing happens.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> z, t = jnp.ones((1, 2)), jnp.array([1])
    >>> print(ddim_step(flow_schedule(4), z, 0.5 * z, t, t), ddim_step(flow_schedule(4), z, 0.5 * z, t, t + 1))
    [[1. 1.]] [[0.75 0.75]]
  """
  x0_hat = x0_from_eps(schedule, z, t, eps_hat)
  return per_example(schedule.alpha[t_next], z) * x0_hat + per_example(schedule.sigma[t_next], z) * eps_hat


def invert(predict: Callable[[Array, Array], Array], schedule: Schedule, x: Array, times: Array,
           kicks: Array | None = None) -> tuple[Array, Array]:
  """From a clean image up to noise, by DDIM.

  Args:
    predict: (z [B, ...], t [B]) -> eps_hat [B, ...]; called once a step, in one `lax.scan`.
    schedule: of the prior.
    x: [B, ...], taken for z at the first time.
    times: [n + 1, B] integer, not falling; where one equals the next, z stays.
    kicks: [n, B, ...], what each step adds of the noise that a random step of DDPM in this place would have; None: 0.

  Returns:
    (z [B, ...] at times[-1], the last prediction [B, ...], which was made at times[-2]).

  Example: a network that says 0 sees an image that only fades.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> z, _ = invert(lambda z, t: 0 * z, flow_schedule(4), jnp.ones((1, 2)), jnp.array([[0], [1], [2]]))
    >>> print(z)
    [[0.33333334 0.33333334]]
  """
  def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array | None]) -> tuple[tuple[Array, Array], None]:
    z, _ = carry
    t, t_next, kick = inputs
    eps_hat = predict(z, t).astype(z.dtype)
    z = ddim_step(schedule, z, eps_hat, t, t_next)
    if kick is not None:
      z += per_example(_kick_size(schedule, t, t_next), z) * kick
    return (z, eps_hat), None

  found, _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), (times[:-1], times[1:], kicks))
  return found


def _kick_size(schedule: Schedule, t: Array, t_next: Array) -> Array:
  """Standard deviation of DDPM's noise between t and t_next > t (arXiv:2010.02502, eq. 16, with eta = 1); 0 at t."""
  low, high = schedule.alpha[t] ** 2, schedule.alpha[t_next] ** 2
  kept = jnp.where(low > 0, high / jnp.where(low > 0, low, 1.0), 1.0)  # at pure noise there is no further step
  return jnp.sqrt(jnp.maximum((1 - low) / (1 - high) * (1 - kept), 0.0))


def _climb(schedule: Schedule, top: Array, stride: float, steps: int, start: float) -> Array:
  """Times [steps + 1, B] from `start` in strides (fractions of the schedule) until `top` [B], and top from there.

  The last one is top, however few the steps.
  """
  first, width = (int(fraction * schedule.alpha.shape[0]) for fraction in (start, stride))
  times = jnp.minimum(first + max(width, 1) * jnp.arange(steps + 1)[:, None], top[None])
  return times.at[-1].set(top)


def ism(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, delta_t: Array | float = 0.08, delta_s: float = 0.2, steps: int = 5,
        start: float = 0.0) -> tuple[Array, dict[str, Array]]:
  """Interval score matching: eps_guided(z_t, t) - eps_u(z_s, s) (LucidDreamer, arXiv:2311.11284, eq. 17).

  z_s is the unconditional inversion of the image up to s = t - delta_t, and z_t one more step of it: noise that the
  model itself finds in the image, in place of random noise, of which eps only has what lies on z where it begins.

  Args:
    denoise_fn ... keys: as `estimators` says.
    delta_t: t - s, a fraction of the schedule, perhaps traced; s does not go below `start`.
    delta_s: stride of the inversion, a fraction of the schedule; static.
    steps: strides at most (static): each costs a call of the network. The published 5 reach every s.
    start: where the inversion begins, a fraction of the schedule; static. What a network that predicts the clean image
      says of eps where there is hardly any noise is its error divided by a tiny sigma: it wants to begin higher.

  Returns:
    (residual [B, ...] float32, dict(t, eps_hat, x0_hat)), t [B] not below `start`. The published code takes a negative
    prompt for the unconditional side of eps_guided, but not for eps_u; here both are that side of cond.

  Example: a network that says z / 2 moves z on its way from s to t.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.ones((1, 1)), jnp.array([500])
    >>> half = lambda p, z, t, c: z / 2
    >>> residual, _ = ism(half, None, flow_schedule(1000), x, t, 0 * x, None, delta_t=0.25, delta_s=0.5)
    >>> print(residual.shape, bool(jnp.abs(residual[0, 0]) > 0.05))
    (1, 1) True
  """
  count = schedule.alpha.shape[0]
  s = jnp.maximum(t - jnp.round(delta_t * count).astype(t.dtype), int(start * count))
  times = jnp.concatenate([_climb(schedule, s, delta_s, steps, start), jnp.maximum(t, s)[None]])
  z, eps_s = invert(lambda z, t: unconditional(denoise_fn, params, z, t, cond), schedule,
                    add_noise(schedule, x, eps, times[0]), times)
  t = times[-1]
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  residual = eps_hat.astype(jnp.float32) - eps_s.astype(jnp.float32)
  return residual, dict(t=t, eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


def sdi(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, inversion_scale: Array | float = -7.5, eta: float = 0.3, stride: float = 0.1, steps: int = 10,
        start: float = 0.0) -> tuple[Array, dict[str, Array]]:
  """Score distillation via inversion: eps_guided(z_t) - eps_inv, z_t = alpha x + sigma eps_inv (arXiv:2405.15891).

  The noise is the one that DDIM's inversion finds in the image under negative guidance, with a little of its own at
  each step; eps only has what lies on z where the inversion begins.

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for the steps' own noise.
    inversion_scale: guidance on the way up, in denoise_fn's own convention; the published one is DreamFusion's omega.
      Of a denoiser that is not guided, nothing changes.
    eta: how much noise each step adds, as a share of what DDPM would; static, and 0 on a schedule that does not
      preserve variance.
    stride, steps, start: of the inversion, as `delta_s`, `steps` and `start` of `ism`.

  Returns:
    (residual [B, ...] float32, dict(t, eps_hat, x0_hat, eps=eps_inv)), t [B] not below `start`. The public code stops
    the inversion a random bit above t, and asks at t all the same; here it stops at t, as the paper says.

  Example: without noise of its own, under the exact score of images at 0, the inversion stays on the model's path.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x, t = flow_schedule(1000), jnp.ones((1, 1)), jnp.array([500])
    >>> point = lambda p, z, t, c: z / schedule.sigma[t][:, None]
    >>> residual, seen = sdi(point, None, schedule, x, t, x, None, jax.random.split(jax.random.key(0), 1), eta=0.0)
    >>> print(bool(jnp.allclose(residual, seen["eps_hat"] - seen["eps"])))
    True
  """
  upwards = dataclasses.replace(denoise_fn, scale=inversion_scale) if isinstance(denoise_fn, Guided) else denoise_fn
  times, kicks = _climb(schedule, jnp.maximum(t, int(start * schedule.alpha.shape[0])), stride, steps, start), None
  if eta:
    kicks = eta * jnp.moveaxis(jax.vmap(lambda k: jax.random.normal(k, (steps, *x.shape[1:]), x.dtype))(keys), 1, 0)
  z, _ = invert(lambda z, t: upwards(params, z, t, cond), schedule, add_noise(schedule, x, eps, times[0]), times, kicks)
  t = times[-1]
  alpha, sigma = per_example(schedule.alpha[t], x), per_example(schedule.sigma[t], x)
  eps_inv = (z - alpha * x) / sigma
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  residual = eps_hat.astype(jnp.float32) - eps_inv.astype(jnp.float32)
  return residual, dict(t=t, eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat), eps=eps_inv)


def cds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, gap: float = 0.1, spread: float = 0.2, clip: Array | float | None = None,
        noise_seed: int = 0) -> tuple[Array, dict[str, Array]]:
  """Consistent distillation: eps_guided(z_u) - eps_guided(z_t), t < u on one path (Consistent3D, arXiv:2401.09050).

  z_u = alpha x + sigma e, with one noise e for all images and steps, and z_t is one step of the model's own down from
  it. The imprint of e stays: images of N(m, c^2) come to rest where z_u = alpha m, at x = m - (sigma / alpha) e.

  Args:
    denoise_fn ... cond: as `estimators` says; eps plays no part.
    keys: [B]; consumed, for u.
    gap, spread: u - t is uniform in [gap, gap + spread), fractions of the schedule; static. The last time is the most.
    clip: if given, each number of the residual is kept within +-clip; may be traced.
    noise_seed: of e; static.

  Returns:
    (residual [B, ...] float32, dict(eps_hat, x0_hat, eps=e), all [B, ...]).

  Example: a model whose images are all at 0 agrees with itself wherever its path leads.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x = flow_schedule(1000), jnp.ones((2, 1))
    >>> point = lambda p, z, t, c: z / schedule.sigma[t][:, None]
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> residual, _ = cds(point, None, schedule, x, jnp.array([500, 600]), x, None, keys)
    >>> print(bool(jnp.abs(residual).max() < 1e-5))
    True
  """
  count = schedule.alpha.shape[0]
  above = gap + spread * jax.vmap(jax.random.uniform)(keys)
  u = jnp.minimum(t + jnp.floor(above * count).astype(t.dtype), count - 1)
  one = jax.random.normal(jax.random.key(noise_seed), x.shape[1:], x.dtype)
  e = jnp.broadcast_to(one[None], x.shape)
  z_u = add_noise(schedule, x, e, u)
  eps_u = denoise_fn(params, z_u, u, cond).astype(x.dtype)
  z = ddim_step(schedule, z_u, eps_u, u, t)
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  residual = eps_u.astype(jnp.float32) - eps_hat.astype(jnp.float32)
  if clip is not None:
    residual = jnp.clip(residual, -clip, clip)
  return residual, dict(eps_hat=eps_u, x0_hat=x0_from_eps(schedule, z_u, u, eps_u), eps=e)
