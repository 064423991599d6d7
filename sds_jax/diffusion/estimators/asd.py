"""ASD: the difference of the predictions at two times (arXiv:2407.02040)."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.estimators.base import Draw, Estimator, Moment, for_small_prior
from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.guidance import conditional, one_a_group, predict
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise
from sds_jax.prng import as_threefry
from sds_jax.schema import number, setting
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def asd(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, shift: float = 0.1, t_min: Array | float = 0.02) -> tuple[Array, dict[str, Array]]:
  """Returns eps_guided(z_t) - eps_c(z_u), u a little later than t: asynchronous distillation (arXiv:2407.02040, eq. 9).

  The prediction at more noise replaces that of VSD's second network, since both err in the same way.

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for u.
    shift: u - t is uniform in [0, shift (t - t_min)); static.
    t_min: lower end of t, a fraction of the schedule; may be traced.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: without a shift, and without guidance, there is nothing to learn.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t, keys = jnp.ones((1, 2)), jnp.array([500]), jax.random.split(jax.random.key(0), 1)
    >>> print(asd(lambda p, z, t, c: z, None, flow_schedule(1000), x, t, x, None, keys, shift=0.0)[0])
    [[0. 0.]]
  """
  count = schedule.alpha.shape[0]
  # A given t may lie below t_min; without the maximum u would then lie below t.
  span = shift * jnp.maximum(t.astype(jnp.float32) - t_min * count, 0.0)
  # Whole times, so that u = t is drawn, too, and u never exceeds t by more than the span.
  drawn = jax.vmap(lambda key: jax.random.uniform(as_threefry(key), dtype=jnp.float32))(keys)
  later = jnp.floor(one_a_group(denoise_fn, drawn) * span).astype(t.dtype)
  # t + span may pass the end of the schedule, for which the network was not trained.
  u = jnp.minimum(t + later, count - 1)
  z = add_noise(schedule, x, eps, t)
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  # Without guidance, like the second network of VSD, whose place this prediction takes.
  eps_later = conditional(denoise_fn, params, add_noise(schedule, x, eps, u), u, cond)
  residual = eps_hat.astype(widened(x)) - eps_later.astype(widened(x))
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of asynchronous distillation."""
  shift: float = setting(0.1, number(0.0, 1.0), "u - t is at most this share of t - t_min")


def _arguments(options: Options, moment: Moment) -> dict[str, Any]:
  return dict(shift=options.shift, t_min=moment.t_low)


PUBLISHED = Draw(guidance_scale=7.5, t_min=((0.0, 0.5), (1.0, 0.02)), t_max=((0.0, 0.98), (1.0, 0.5)))

SPEC = Estimator(
    "asd", asd, paper="2407.02040", residual="e_g(z_t) - e_c(z_u), u a little later than t", calls="3", options=Options,
    published=PUBLISHED, small=for_small_prior(PUBLISHED), arguments=_arguments,
    source="The authors' code: both ends of t's range come down over the run.")
