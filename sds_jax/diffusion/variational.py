"""Variational score distillation: the noise's place is taken by a network that knows the images made so far.

SDS moves a single image as if the law of images were a point. VSD (ProlificDreamer, arXiv:2305.16213) moves samples of
a law, and needs that law's own score at z_t. A second network eps_phi learns it on the way, from the images being
made; its parameters are explicit state, moved by an optimiser beside the images':

  loss = score_distillation(denoise, params, ..., x, ..., estimator="vsd",
                            options=dict(score_fn=score_fn, score_params=phi))[0]
  loss += score_loss(score_fn, phi, schedule, x, key, cond)       # moves phi only; the line above moves x only

score_fn may be a small network of its own, or the prior with adapters (`lora.merge`). Several images ("particles") in
one batch share it.
"""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion import timesteps
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, draw_noise
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def vsd(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, score_fn: DenoiseFn, score_params: Params,
        score_cond: Any = None) -> tuple[Array, dict[str, Array]]:
  """eps_guided(z_t; y) - eps_phi(z_t; y, c) (arXiv:2305.16213, eq. 9).

  Where the law of images is a point, its exact score gives eps_phi = eps, and this is SDS sample by sample.

  Args:
    denoise_fn ... keys: as `estimators` says.
    score_fn: eps_phi, without guidance.
    score_params: phi; no gradient here.
    score_cond: what score_fn is told, leaves [B, ...], with the camera c where there is one.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: the score of a single point at 0, and a network that says 1.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x, t = flow_schedule(4), jnp.zeros((1, 2)), jnp.array([1])
    >>> residual, _ = vsd(lambda *a: jnp.ones((1, 2)), None, schedule, x, t, x + 0.25, None,
    ...                   score_fn=lambda phi, z, t, cond: z / schedule.sigma[t][:, None], score_params=None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  z = add_noise(schedule, x, eps, t)
  eps_hat = denoise_fn(params, z, t, cond).astype(x.dtype)
  eps_phi = score_fn(jax.lax.stop_gradient(score_params), z, t, score_cond)
  residual = eps_hat.astype(jnp.float32) - eps_phi.astype(jnp.float32)
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


def score_loss(score_fn: DenoiseFn, score_params: Params, schedule: Schedule, x: Array, key: Array, cond: Any, *,
               t: Array | None = None, t_range: timesteps.TRange = (0.0, 1.0), index: Array | None = None) -> Array:
  """Mean of (eps_phi(z_t) - eps)^2: what eps_phi learns the images' law from (arXiv:2305.16213, eq. 9, second line).

  Args:
    score_fn, score_params: as in `vsd`; differentiable in score_params.
    schedule: of the prior.
    x: [B, ...], the images made; they get no gradient.
    key: consumed: one key for t and one for the noise, of which example b uses fold_in(., index[b]).
    cond: what score_fn is told, leaves [B, ...]; no gradient.
    t: [B] integer times; uniform in t_range (fractions of the schedule) where None.
    index: [B], global indices, as in `score_distillation`.

  Returns:
    [] float32.

  Example: a network that says phi, at its best where phi is the noise's mean, 0.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> loss = lambda phi: score_loss(lambda phi, z, t, cond: phi + 0 * z, phi, flow_schedule(4), jnp.ones((9999, 2)),
    ...                               jax.random.key(0), None)
    >>> print(f"{jax.grad(loss)(1.0):.1f}")
    2.0
  """
  index = jnp.arange(x.shape[0]) if index is None else index
  t_key, eps_key = jax.random.split(key)
  t = timesteps.uniform(t_key, index, t_range, schedule.alpha.shape[0]) if t is None else t
  x, cond = jax.lax.stop_gradient((x, cond))
  eps = draw_noise(eps_key, index, x)
  error = score_fn(score_params, add_noise(schedule, x, eps, t), t, cond).astype(jnp.float32) - eps.astype(jnp.float32)
  return jnp.mean(error**2)
