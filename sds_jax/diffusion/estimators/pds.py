"""PDS: the difference of the posterior latents of an image and of its source (arXiv:2311.13831)."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.checks import stop_gradient, widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, for_small_prior
from sds_jax.diffusion.pairs import predict_both
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, at_times, per_example, variance_preserving
from sds_jax.prng import as_threefry
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def pds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, source_x: Array, source_cond: Any, stride: int | None = None) -> tuple[Array, dict[str, Array]]:
  """Returns the difference of the posterior latents of image and source (PDS, arXiv:2311.13831, eq. 11-14).

  latent = (z_prev - mu(z_t, y)) / s_t, where z_prev = alpha_prev x + sigma_prev e. Image and source share the noise e,
  so that e cancels. mu and s_t are those of DDPM's posterior (arXiv:2006.11239, eq. 7) for the single step beta_t. They
  hold for variance-preserving schedules, so any schedule is taken in that form, with the same signal-to-noise ratios.
  With t_prev = t - 1 the clean images cancel, and the residual is a multiple of that of DDS. The public code has a grid
  of 500 of 1,000 times, so t_prev = t - 2; then psi (x - x_source) pulls the image back to the form of the source.

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for e; the residual depends on e by rounding only.
    source_x: [B, ...], like x; no gradient.
    source_cond: of the structure and shapes of cond.
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
  source_x = stop_gradient(source_x)
  z, z_source = add_noise(schedule, x, eps, t), add_noise(schedule, source_x, eps, t)
  eps_hat, eps_source = predict_both(denoise_fn, params, z, z_source, t, cond, source_cond)
  # e is equal in both latents and cancels in their difference, in float32 up to a small rounding error.
  wide, preserving = widened(x), variance_preserving(schedule)
  e = jax.vmap(lambda key: jax.random.normal(as_threefry(key), x.shape[1:], wide))(keys)

  def latent(x: Array, eps_hat: Array) -> Array:
    x, noise, eps_hat = (a.astype(wide) for a in (x, eps, eps_hat))
    # A negative index would count from the end of the table.
    z, z_prev = add_noise(preserving, x, noise, t), add_noise(preserving, x, e, jnp.maximum(t - stride, 0))
    return _posterior_latent(preserving, z_prev, z, x0_from_eps(preserving, z, t, eps_hat), t, stride)

  residual = latent(x, eps_hat) - latent(source_x, eps_source)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


def _posterior_latent(schedule: Schedule, z_prev: Array, z: Array, x0_hat: Array, t: Array, stride: int) -> Array:
  """Returns (z_prev - mu) / s_t [B, ...].

  alpha_t and beta_t are those of the single step, alpha-bar that of t - stride.
  """
  bar, bar_prev = at_times(schedule.alpha, t) ** 2, at_times(schedule.alpha, jnp.maximum(t - stride, 0)) ** 2
  # Before time 0 there is no noise: alpha-bar is 1.
  step_alpha = bar / jnp.where(t > 0, at_times(schedule.alpha, jnp.maximum(t - 1, 0)) ** 2, 1.0)
  beta = 1 - step_alpha
  of_x0 = jnp.sqrt(bar_prev) * beta / (1 - bar)
  of_z = jnp.sqrt(step_alpha) * (1 - bar_prev) / (1 - bar)
  # The posterior's own deviation, the smaller of DDPM's two choices.
  deviation = jnp.sqrt((1 - bar_prev) / (1 - bar) * beta)
  mu = per_example(of_x0, z) * x0_hat + per_example(of_z, z) * z
  return (z_prev - mu) / per_example(deviation, z)


PUBLISHED = Draw("uniform", guidance_scale=100.0)

SPEC = Estimator(
    "pds", pds, paper="2311.13831", residual="the same for the latents of DDPM's posterior", calls="4",
    needs=frozenset({"source"}), published=PUBLISHED,
    small=for_small_prior(PUBLISHED, guidance_scale=20.0),  # with 3 the pull to the source, here an empty mist, wins
    source="The authors' code for NeRFs.")
