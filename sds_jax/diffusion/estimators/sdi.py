"""SDI: score distillation via inversion (arXiv:2405.15891)."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import LEGAL_START, Draw, Estimator, Moment, for_small_prior, inversion_start
from sds_jax.diffusion.guidance import Guided, predict
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.paths import invert, rising_times
from sds_jax.diffusion.schedules import add_noise, at_times, per_example
from sds_jax.prng import as_threefry
from sds_jax.schema import Scheduled, number, scheduled, setting, whole
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def sdi(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array, *, inversion_scale: Array | float = -7.5, eta: float = 0.3, stride: float = 0.1, steps: int = 10,
        start: float = 0.0) -> tuple[Array, dict[str, Array]]:
  """Returns eps_guided(z_t) - eps_inv, z_t = alpha x + sigma eps_inv: distillation via inversion (arXiv:2405.15891).

  eps_inv is the noise that DDIM's inversion of the image ends in, under negative guidance and with a little random
  noise at each step. `eps` only noises the start, and only where `start` > 0.

  Args:
    denoise_fn ... cond: as `estimators` says.
    keys: [B]; consumed, for the random noise of the steps.
    inversion_scale: guidance scale of the inversion, in the convention of denoise_fn; the published scale is
      DreamFusion's omega. Not used with a denoiser that is not guided.
    eta: random noise of each step, as a share of DDPM's; static. On a schedule that does not preserve variance the
      noise is that of the path of the same signal-to-noise ratios, scaled with z.
    stride: of the inversion, a fraction of the schedule; static.
    steps: strides at most, static; each costs a call of the network.
    start: beginning of the inversion, a fraction of the schedule; static. See `ism`.

  Returns:
    (residual [B, ...] float32, dict(t, eps_hat, x0_hat, eps=eps_inv)), t [B] not below `start`. The public code stops
    the inversion a random distance above t, and asks the network at t; here the inversion stops at t, as in the paper.

  Example: without random noise, under the exact score of images at 0, the inversion stays on the model's path.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x, t = flow_schedule(1000), jnp.ones((1, 1)), jnp.array([500])
    >>> point = lambda p, z, t, c: z / schedule.sigma[t][:, None]
    >>> residual, seen = sdi(point, None, schedule, x, t, x, None, jax.random.split(jax.random.key(0), 1), eta=0.0)
    >>> print(bool(jnp.allclose(residual, seen["eps_hat"] - seen["eps"])))
    True
  """
  upwards = dataclasses.replace(denoise_fn, scale=inversion_scale) if isinstance(denoise_fn, Guided) else denoise_fn
  top = jnp.maximum(t, int(start * schedule.alpha.shape[0]))
  times, kicks = rising_times(schedule, top, stride, steps, start), None
  if eta:  # static, so that the program holds no random numbers without eta
    draw = lambda key: jax.random.normal(as_threefry(key), (steps, *x.shape[1:]), x.dtype)  # noqa: E731
    # The steps come first, since lax.scan runs over the leading axis.
    kicks = eta * jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)
  start_z = add_noise(schedule, x, eps, times[0])
  z, _ = invert(lambda z, t: predict(upwards, params, z, t, cond), schedule, start_z, times, kicks)
  t = times[-1]
  alpha, sigma = per_example(at_times(schedule.alpha, t), x), per_example(at_times(schedule.sigma, t), x)
  # The one noise that takes x to z, and not the last prediction, which is of an earlier time.
  eps_inv = (z - alpha * x) / sigma
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  residual = eps_hat.astype(widened(x)) - eps_inv.astype(widened(x))
  return residual, dict(t=t, eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat), eps=eps_inv)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of score distillation via inversion."""
  inversion: Scheduled = setting(-1.0, scheduled(-100.0, 100.0), "omega of the inversion over omega of the estimate")
  eta: float = setting(0.3, number(0.0, 10.0), "random noise of each step, as a share of DDPM's")
  stride: float = setting(0.1, number(0.001, 1.0, ", a fraction of the schedule"), "stride of the inversion")
  steps: int = setting(10, whole(1, 1000), "strides of the inversion at most")
  start: float = setting(-1.0, LEGAL_START, "beginning of the inversion; -1: 0.15 if the prior predicts x0, else 0")


def _arguments(options: Options, moment: Moment) -> dict[str, Any]:
  # Relative to no guidance, so that -1 reverses the guidance in both conventions: -omega, or 2 - s.
  scale = moment.neutral_scale + moment.now(options.inversion) * (moment.guidance_scale - moment.neutral_scale)
  return dict(inversion_scale=scale, eta=options.eta, stride=options.stride, steps=options.steps,
              start=inversion_start(options.start, moment))


PUBLISHED = Draw("sigma_over_alpha", "dreamfusion", guidance_scale=7.5, t_min=((0.0, 0.98), (1.0, 0.25)),
                 t_max=((0.0, 0.98), (1.0, 0.25)))

SPEC = Estimator(
    "sdi", sdi, paper="2405.15891", residual="e_g(z_t) - e_inverted", calls="22", options=Options, published=PUBLISHED,
    small=for_small_prior(PUBLISHED), arguments=_arguments,
    source="threestudio's code: t comes down without randomness.")
