"""The distillation of a step, as the settings have it: t, guidance, the estimator and what it needs of its own."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from sds_jax.diffusion import guidance, timesteps
from sds_jax.diffusion.distillation import DistillationAux, inject, score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.estimators.hifa import image_residual
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import per_example
from sds_jax.diffusion.variational import score_loss
from sds_jax.diffusion.weightings import WEIGHTINGS
from sds_jax.priors.prior import Prior
from sds_jax.training import score_network
from sds_jax.training.config import scalar_spec
from sds_jax.types import Array, Params

NAMES = tuple(ESTIMATORS)
"""What `distillation.estimator` may be. HiFA is SDS with a second term, in the space of pictures."""

Config = ml_collections.FrozenConfigDict
Now = Callable[[tuple], Array]
"""A scheduled scalar of the settings -> its value at this moment of the run."""


def distil(config: Config, prior: Prior, prior_params: Params, x: Array, cond: dict[str, Any], keys: dict[str, Array],
           progress: Array, own: dict[str, Any] | None = None,
           index: Array | None = None) -> tuple[Array, DistillationAux]:
  """The scalar whose gradient is the distillation's, and what was seen on the way.

  Args:
    x: [B, *x_shape], what the prior makes of the images; B is `training.views`, or this device's share of them.
    cond: of `conditions.sides`.
    keys: of `update.step_keys`; t, distil, score and forget are consumed.
    progress: fraction of the run that is done, [] float32.
    own: what some estimators want besides: `source_x` [B, *x_shape] and `source_cond` (dds, pds); `score`, the
      parameters of VSD's second network, which this scalar also trains, and the views' `camera` [B, CAMERA_DIM] if
      they have one; `image` [B, S, S, 3], the pictures that x is of, at the prior's size (hifa).
    index: [B] int32, which of the step's `training.views` these are; None: all.
  """
  d, own = config.distillation, own or {}
  index = jnp.arange(x.shape[0]) if index is None else index
  now: Now = lambda spec: schedule_value(scalar_spec(spec), progress)  # noqa: E731
  t = draw_t(config, prior, keys["t"], progress, index)
  denoise = guidance.guided(prior.denoise, d.guidance_convention, now(d.guidance_scale),
                            rescale_phi=0.0 if d.guidance_rescale == (0.0,) else now(d.guidance_rescale))
  told = score_network.told(config, cond, own.get("camera"), keys["forget"]) if d.estimator == "vsd" else (None, None)
  loss, aux = score_distillation(
      denoise, prior_params, prior.schedule, x, keys["distil"], cond, t=t, index=index, weighting=d.weighting,
      estimator="sds" if d.estimator == "hifa" else d.estimator,
      options=_options(config, prior, prior_params, now, progress, dict(own, score_cond=told[0])),
      scale=now(config.loss.sds), clip_norm=None if d.clip_norm == (0.0,) else now(d.clip_norm),
      antithetic=d.antithetic_noise)
  if d.estimator == "hifa":
    loss += _image_term(config, prior, prior_params, aux, own["image"], now)
  if d.estimator == "vsd":
    loss += score_loss(score_network.make_score_fn(prior), (prior_params, own["score"]), prior.schedule, x,
                       keys["score"], told[1], index=index)
  return loss, aux


def draw_t(config: Config, prior: Prior, key: Array, progress: Array, index: Array) -> Array:
  """t [B] int32 of the views `index` [B] of a step; consumes `key`."""
  draw, count = timesteps.SAMPLERS[config.distillation.t_sampler], prior.schedule.alpha.shape[0]
  return draw(key, index, _t_range(config, prior, progress), count, config.training.views)


def _t_range(config: Config, prior: Prior, progress: Array) -> tuple[Array, Array]:
  """(low, high) of t at this moment of the run, fractions of the schedule, [] each."""
  d = config.distillation
  warp = "linear" if d.t_warp == "dreamtime" else d.t_warp
  low, high = timesteps.annealed_range(scalar_spec(d.t_min), scalar_spec(d.t_max), progress, warp)
  if d.t_warp == "dreamtime":
    low = high = jnp.clip(timesteps.dreamtime(prior.schedule, progress), low, high)
  return low, high


def _options(config: Config, prior: Prior, prior_params: Params, now: Now, progress: Array,
             own: dict[str, Any]) -> dict[str, Any]:
  """The estimator's options at this moment of the run."""
  d = config.distillation
  settings = d[d.estimator].to_dict() if d.estimator in d else {}
  options = {name: now(v) if isinstance(v, tuple) else v for name, v in settings.items() if not isinstance(v, str)}
  match d.estimator:
    case "csd" | "nfsd":
      return options
    case "cds":
      return dict(options, noise_seed=config.seed)
    case "ism":
      return dict(options, start=_start(prior, options["start"]))
    case "sdi":
      neutral = guidance.NO_GUIDANCE[d.guidance_convention]
      upwards = neutral + options.pop("inversion") * (now(d.guidance_scale) - neutral)
      return dict(options, start=_start(prior, options["start"]), inversion_scale=upwards)
    case "asd":
      return dict(options, t_min=_t_range(config, prior, progress)[0])
    case "bridge":
      return dict(bridged=(progress >= options["begins"]).astype(jnp.float32))
    case "dds" | "pds":
      return dict(source_x=own["source_x"], source_cond=own["source_cond"])
    case "vsd":
      return dict(score_fn=score_network.make_score_fn(prior), score_params=(prior_params, own["score"]),
                  score_cond=own["score_cond"])
  return {}


def _start(prior: Prior, start: float) -> float:
  """Where an inversion begins: a network that predicts the clean image divides its error by sigma to say eps."""
  if start >= 0.0:
    return start
  return 0.15 if prior.prediction_type == "sample" else 0.0


def _image_term(config: Config, prior: Prior, prior_params: Params, aux: DistillationAux, image: Array,
                now: Now) -> Array:
  """HiFA's scalar: its gradient is that of the same step in the space of pictures."""
  d = config.distillation
  image_hat = jax.lax.stop_gradient(prior.decode(prior_params, aux.x0_hat))
  weight = now(config.loss.sds) * now(d.hifa.image_weight) * WEIGHTINGS[d.weighting](prior.schedule, aux.t)
  residual = image_residual(prior.schedule, aux.t, image, image_hat)
  return inject(image, per_example(weight, residual) * residual / image.shape[0])
