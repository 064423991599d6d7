"""ISM: interval score matching, along the inversion of the image (LucidDreamer, arXiv:2311.11284)."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import LEGAL_START, Draw, Estimator, Moment, for_small_prior, inversion_start
from sds_jax.diffusion.guidance import predict, unconditional
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.paths import invert, rising_times
from sds_jax.diffusion.schedules import add_noise
from sds_jax.schema import Scheduled, number, scheduled, setting, whole
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def ism(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, delta_t: Array | float = 0.08, delta_s: float = 0.2, steps: int = 5,
        start: float = 0.0) -> tuple[Array, dict[str, Array]]:
  """Returns eps_guided(z_t, t) - eps_u(z_s, s): interval score matching (LucidDreamer, arXiv:2311.11284, eq. 17).

  z_s is the unconditional inversion of the image up to s = t - delta_t, and z_t is one more step of the inversion. So
  the noise comes from the model itself. `eps` only noises the start, and only where `start` > 0.

  Args:
    denoise_fn ... keys: as `estimators` says.
    delta_t: t - s, a fraction of the schedule, perhaps traced; s does not fall below `start`.
    delta_s: stride of the inversion, a fraction of the schedule; static.
    steps: strides at most, static; each costs a call of the network. The published 5 reach every s.
    start: beginning of the inversion, a fraction of the schedule; static. A network that predicts the clean image must
      begin higher, since its error in eps is divided by sigma, which is tiny there.

  Returns:
    (residual [B, ...] float32, dict(t, eps_hat, x0_hat)), t [B] not below `start`. The published code takes a negative
    prompt for the unconditional side of eps_guided, but not for eps_u; here both are the unconditional side of cond.

  Example: a network that predicts z / 2 moves z between s and t.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.ones((1, 1)), jnp.array([500])
    >>> half = lambda p, z, t, c: z / 2
    >>> residual, _ = ism(half, None, flow_schedule(1000), x, t, 0 * x, None, delta_t=0.25, delta_s=0.5)
    >>> print(residual.shape, bool(jnp.abs(residual[0, 0]) > 0.05))
    (1, 1) True
  """
  count = schedule.alpha.shape[0]
  # Rounded: a scheduled delta_t in float32 may fall just short of a whole number of times.
  s = jnp.maximum(t - jnp.round(delta_t * count).astype(t.dtype), int(start * count))
  # One scan inverts up to s and takes the step from s to t, so that the network is compiled once for both.
  # A t below `start` is raised along with s, and the interval is empty.
  times = jnp.concatenate([rising_times(schedule, s, delta_s, steps, start), jnp.maximum(t, s)[None]])
  z, eps_s = invert(lambda z, t: unconditional(denoise_fn, params, z, t, cond), schedule,
                    add_noise(schedule, x, eps, times[0]), times)
  t = times[-1]
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  residual = eps_hat.astype(widened(x)) - eps_s.astype(widened(x))
  return residual, dict(t=t, eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of interval score matching."""
  delta_t: Scheduled = setting(((0.0, 0.1), (0.3, 0.08)), scheduled(0.0, 1.0), "t - s, a fraction of the schedule")
  delta_s: float = setting(0.2, number(0.001, 1.0, ", a fraction of the schedule"), "stride of the inversion")
  steps: int = setting(5, whole(1, 1000), "strides of the inversion at most")
  start: float = setting(-1.0, LEGAL_START, "beginning of the inversion; -1: 0.15 if the prior predicts x0, else 0")


def _arguments(options: Options, moment: Moment) -> dict[str, Any]:
  return dict(delta_t=moment.now(options.delta_t), delta_s=options.delta_s, steps=options.steps,
              start=inversion_start(options.start, moment))


PUBLISHED = Draw("sigma_over_alpha", guidance_scale=7.5, t_max=((0.0, 0.98), (0.3, 0.5)))

SPEC = Estimator(
    "ism", ism, paper="2311.11284", residual="e_g(z_t) - e_u(z_s), both on the image's inversion", calls="8",
    options=Options, published=PUBLISHED,
    small=for_small_prior(PUBLISHED, t_min=0.25),  # an inversion that begins at 0.15 needs room for its interval
    arguments=_arguments,
    source="The authors' code: t up to 0.98 at first, 0.5 after 0.3 of the run. Perp-Neg is on there, and the weight "
           "is multiplied by 0.1.")
