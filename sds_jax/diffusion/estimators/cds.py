"""CDS: consistency along one path of the model (Consistent3D, arXiv:2401.09050)."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, Moment, for_small_prior
from sds_jax.diffusion.guidance import one_a_group, predict
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.paths import ddim_step
from sds_jax.diffusion.schedules import add_noise
from sds_jax.prng import as_threefry, seeded_key
from sds_jax.schema import Scheduled, number, scheduled, setting
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def cds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, gap: float = 0.1, spread: float = 0.2, clip: Array | float | None = None,
        noise_seed: int = 0) -> tuple[Array, dict[str, Array]]:
  """Returns eps_guided(z_u) - eps_guided(z_t), t < u on one path: consistent distillation (arXiv:2401.09050).

  z_u = alpha x + sigma e, with one noise e for all images and steps, and z_t is one step of the model down from z_u.
  The imprint of e stays: images of N(m, c^2) come to rest where z_u = alpha m, at x = m - (sigma / alpha) e.

  Args:
    denoise_fn ... cond: as `estimators` says; eps is not used.
    keys: [B]; consumed, for u.
    gap, spread: u - t is uniform in [gap, gap + spread), fractions of the schedule; static. u is at most the last time.
    clip: bound of each number of the residual, [-clip, clip]; may be traced. None: no bound.
    noise_seed: of e; static.

  Returns:
    (residual [B, ...] float32, dict(eps_hat, x0_hat, eps=e), all [B, ...]).

  Example: a model whose images are all at 0 agrees with itself along its path.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x = flow_schedule(1000), jnp.ones((2, 1))
    >>> point = lambda p, z, t, c: z / schedule.sigma[t][:, None]
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> residual, _ = cds(point, None, schedule, x, jnp.array([500, 600]), x, None, keys)
    >>> print(bool(jnp.abs(residual).max() < 1e-5))
    True
  """
  count = schedule.alpha.shape[0]
  drawn = jax.vmap(lambda key: jax.random.uniform(as_threefry(key), dtype=jnp.float32))(keys)
  above = gap + spread * one_a_group(denoise_fn, drawn)
  u = jnp.minimum(t + jnp.floor(above * count).astype(t.dtype), count - 1)
  # The noise goes by the run's seed alone, not by the step or the example: the path must be the same at every step.
  one = jax.random.normal(seeded_key(noise_seed), x.shape[1:], x.dtype)
  e = jnp.broadcast_to(one[None], x.shape)
  z_u = add_noise(schedule, x, e, u)
  eps_u = predict(denoise_fn, params, z_u, u, cond).astype(x.dtype)
  z = ddim_step(schedule, z_u, eps_u, u, t)
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  residual = eps_u.astype(widened(x)) - eps_hat.astype(widened(x))
  if clip is not None:
    residual = jnp.clip(residual, -clip, clip)
  return residual, dict(eps_hat=eps_u, x0_hat=x0_from_eps(schedule, z_u, u, eps_u), eps=e)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of consistent distillation."""
  gap: float = setting(0.1, number(0.0, 1.0, ", a fraction of the schedule"), "u - t at least")
  spread: float = setting(0.2, number(0.0, 1.0, ", a fraction of the schedule"), "u - t is less than gap + spread")
  clip: Scheduled = setting(((0.0, 2.0), (1.0, 8.0)), scheduled(0.0), "bound of each number of the residual")


def _arguments(options: Options, moment: Moment) -> dict[str, Any]:
  return dict(gap=options.gap, spread=options.spread, clip=moment.now(options.clip), noise_seed=moment.seed)


_FALLING = ((0.0, 0.7), (1.0, 0.1))
_LATE = ((0.0, 0.8), (1.0, 0.3))

PUBLISHED = Draw("uniform", "dreamfusion", guidance_scale=((0.0, 100.0), (1.0, 50.0)), t_min=_FALLING, t_max=_FALLING,
                 t_warp="sqrt")

SPEC = Estimator(
    "cds", cds, paper="2401.09050", residual="e_g(z_u) - e_g(z_t), t after u on the model's own path", calls="4",
    options=Options, published=PUBLISHED,
    small=for_small_prior(PUBLISHED, t_min=_LATE, t_max=_LATE),  # t below 0.3 flattens the object
    arguments=_arguments,
    source="The authors' code: t is the lower of its two times, and follows the square root of progress.")
