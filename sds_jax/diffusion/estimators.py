"""The family: every published way to make a direction for an image out of a frozen diffusion model's predictions.

All are pure functions of one signature, and `score_distillation` takes any of them, or one of your own:

  (denoise_fn, params, schedule, x, t, eps, cond, keys, **options) -> (residual, seen)

  denoise_fn  predicts the noise, (params, z_t [B, ...], t [B], cond) -> [B, ...]; never differentiated, but by `ldiff`
  params      of denoise_fn
  schedule    that it was trained with
  x           [B, ...], clean images in the space of the prior
  t           [B] integer times
  eps         [B, ...] standard normal noise; z_t = alpha_t x + sigma_t eps
  cond        what denoise_fn is told, leaves [B, ...]
  keys        [B] keys, one an example, consumed where an estimator draws more than t and eps
  options     the estimator's own settings and inputs, by name

residual [B, ...] float32 takes the place of eps_hat - eps in DreamFusion's gradient (arXiv:2209.14988, eq. 3): weight
w(t), clipping and the way into the image are `score_distillation`'s. seen is dict(eps_hat=[B, ...], x0_hat=[B, ...]),
with t or eps in it where the network was asked at another t or under another noise than it was called with.

An estimator of your own, here SDS that trusts no prediction beyond 1:

  >>> def bounded(denoise_fn, params, schedule, x, t, eps, cond, keys):
  ...   z = add_noise(schedule, x, eps, t)
  ...   eps_hat = jnp.clip(denoise_fn(params, z, t, cond), -1.0, 1.0)
  ...   return eps_hat - eps, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))
  >>> from sds_jax import add_noise, schedule_from_config, score_distillation
  >>> from sds_jax.diffusion.parameterizations import x0_from_eps
  >>> loss = lambda x: score_distillation(lambda p, z, t, c: 9.0 * z, None, schedule_from_config({}), x,
  ...                                     jax.random.key(0), None, estimator=bounded)[0]
  >>> print(jax.grad(loss)(jnp.ones((1, 2))).shape)
  (1, 2)
"""
from __future__ import annotations

from collections.abc import Callable

import jax  # noqa: F401 (the example's)
import jax.numpy as jnp  # noqa: F401 (the example's)

from sds_jax.diffusion.jacobian import ldiff
from sds_jax.diffusion.linear import ROWS, linear
from sds_jax.diffusion.pairs import asd, dds, pds
from sds_jax.diffusion.paths import cds, ism, sdi
from sds_jax.diffusion.reparameterized import rfds, sjc
from sds_jax.diffusion.variational import vsd
from sds_jax.types import Array

Estimator = Callable[..., tuple[Array, dict[str, Array]]]

ESTIMATORS: dict[str, Estimator] = {
  **{name: linear(row) for name, row in ROWS.items()},
  "sjc": sjc,
  "rfds": rfds,
  "ldiff": ldiff,
  "vsd": vsd,
  "dds": dds,
  "pds": pds,
  "asd": asd,
  "ism": ism,
  "sdi": sdi,
  "cds": cds,
}
"""Name -> estimator; what each is, and its options, is told by the functions themselves (rows: `linear.ROWS`)."""
