"""Estimators that hold one prediction against another: of a source image (DDS, PDS), or of a later time (ASD).

What both predictions have in common cancels out: the noise, and the network's own error.
"""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.guidance import conditional
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def _of_both(denoise_fn: DenoiseFn, params: Params, z: Array, z_source: Array, t: Array, cond: Any,
             source_cond: Any) -> tuple[Array, Array]:
  """eps_hat of the image and of its source [B, ...]; one call, since a second copy of a network compiles for long."""
  pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), (z, cond), (z_source, source_cond))
  both = jax.vmap(lambda z, cond: denoise_fn(params, z, t, cond))(*pair)
  return both[0].astype(z.dtype), both[1].astype(z.dtype)


def dds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, source_x: Array, source_cond: Any) -> tuple[Array, dict[str, Array]]:
  """Delta denoising score: eps_hat(z_t; y) - eps_hat(z_t^source; y_source), same t and eps (arXiv:2304.07090, eq. 4).

  For editing: x begins as the source, and moves by what y says beyond y_source.

  Args:
    denoise_fn ... keys: as `estimators` says.
    source_x: [B, ...], like x; no gradient.
    source_cond: of the structure and shapes of cond.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: nothing moves an image that is its own source.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.ones((1, 2)), jnp.array([1])
    >>> print(dds(lambda p, z, t, c: z + c, None, flow_schedule(4), x, t, x, x, source_x=x, source_cond=x)[0])
    [[0. 0.]]
  """
  source_x = jax.lax.stop_gradient(source_x)
  z, z_source = add_noise(schedule, x, eps, t), add_noise(schedule, source_x, eps, t)
  eps_hat, eps_source = _of_both(denoise_fn, params, z, z_source, t, cond, source_cond)
  residual = eps_hat.astype(jnp.float32) - eps_source.astype(jnp.float32)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


def pds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, source_x: Array, source_cond: Any, stride: int | None = None) -> tuple[Array, dict[str, Array]]:
  """Posterior distillation: the difference of the latents that make z_prev out of z_t (arXiv:2311.13831, eq. 11-14).

  latent = (z_prev - mu(z_t, y)) / s_t, where z_prev = alpha_prev x + sigma_prev e has a noise of its own, e, shared by
  image and source (so that it cancels), and mu and s_t are those of DDPM's posterior (arXiv:2006.11239, eq. 7) for
  the single step beta_t, so that the schedule has to be one that preserves variance.
  With t_prev = t - 1 the clean images cancel, and this is a multiple of DDS. The public code has a grid of 500 times of
  1,000, so t_prev = t - 2, and with it a pull back to the source's own form: psi (x - x_source).

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for e, which cancels: no residual depends on it but by rounding.
    source_x, source_cond: as in `dds`.
    stride: t - t_prev, static; None: T / 500, at least 1.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: nothing moves an image that is its own source.
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> x, t, keys = jnp.ones((1, 2)), jnp.array([500]), jax.random.split(jax.random.key(0), 1)
    >>> print(pds(lambda p, z, t, c: z + c, None, schedule_from_config({}), x, t, x, x, keys,
    ...           source_x=x, source_cond=x)[0])
    [[0. 0.]]
  """
  stride = max(schedule.alpha.shape[0] // 500, 1) if stride is None else stride
  source_x = jax.lax.stop_gradient(source_x)
  z, z_source = add_noise(schedule, x, eps, t), add_noise(schedule, source_x, eps, t)
  eps_hat, eps_source = _of_both(denoise_fn, params, z, z_source, t, cond, source_cond)
  e = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)

  def latent(x: Array, eps_hat: Array) -> Array:
    x, noise, eps_hat = (a.astype(jnp.float32) for a in (x, eps, eps_hat))
    z, z_prev = add_noise(schedule, x, noise, t), add_noise(schedule, x, e, jnp.maximum(t - stride, 0))
    return _posterior_latent(schedule, z_prev, z, x0_from_eps(schedule, z, t, eps_hat), t, stride)

  residual = latent(x, eps_hat) - latent(source_x, eps_source)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


def _posterior_latent(schedule: Schedule, z_prev: Array, z: Array, x0_hat: Array, t: Array, stride: int) -> Array:
  """(z_prev - mu) / s_t [B, ...], with the single step's alpha_t and beta_t and the alpha-bar of t - stride."""
  bar, bar_prev = schedule.alpha[t] ** 2, schedule.alpha[jnp.maximum(t - stride, 0)] ** 2
  step_alpha = bar / jnp.where(t > 0, schedule.alpha[jnp.maximum(t - 1, 0)] ** 2, 1.0)
  beta = 1 - step_alpha
  of_x0 = jnp.sqrt(bar_prev) * beta / (1 - bar)
  of_z = jnp.sqrt(step_alpha) * (1 - bar_prev) / (1 - bar)
  deviation = jnp.sqrt((1 - bar_prev) / (1 - bar) * beta)
  mu = per_example(of_x0, z) * x0_hat + per_example(of_z, z) * z
  return (z_prev - mu) / per_example(deviation, z)


def asd(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, shift: float = 0.1, t_min: Array | float = 0.02) -> tuple[Array, dict[str, Array]]:
  """Asynchronous distillation: eps_guided(z_t) - eps_c(z_u), u a little later than t (arXiv:2407.02040, eq. 9).

  The prediction at more noise stands in for that of VSD's second network: it is worse there in the same way.

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for u.
    shift: u - t is uniform in [0, shift (t - t_min)); static.
    t_min: fraction of the schedule, the lower end of t's range; may be traced.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: without a shift, and without guidance, there is nothing to learn.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t, keys = jnp.ones((1, 2)), jnp.array([500]), jax.random.split(jax.random.key(0), 1)
    >>> print(asd(lambda p, z, t, c: z, None, flow_schedule(1000), x, t, x, None, keys, shift=0.0)[0])
    [[0. 0.]]
  """
  count = schedule.alpha.shape[0]
  span = shift * jnp.maximum(t.astype(jnp.float32) - t_min * count, 0.0)
  later = jnp.floor(jax.vmap(jax.random.uniform)(keys) * span).astype(t.dtype)
  u = jnp.minimum(t + later, count - 1)
  z = add_noise(schedule, x, eps, t)
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  eps_later = conditional(denoise_fn, params, add_noise(schedule, x, eps, u), u, cond)
  residual = eps_hat.astype(jnp.float32) - eps_later.astype(jnp.float32)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))
