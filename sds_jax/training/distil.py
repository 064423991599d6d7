"""The distillation of one step: draws t, guides the prior, and calls the estimator with its inputs."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion import guidance, timesteps
from sds_jax.diffusion.distillation import DistillationAux, inject, score_distillation
from sds_jax.diffusion.estimators import Moment, find, options_of
from sds_jax.diffusion.estimators.base import SecondGradient
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import per_example
from sds_jax.diffusion.variational import score_loss
from sds_jax.diffusion.weightings import WEIGHTINGS
from sds_jax.priors.prior import Prior
from sds_jax.schema import Scheduled
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import second_network
from sds_jax.types import Array, Params


def distil(distillation: DistillationSettings, weight: Scheduled, prior: Prior, prior_params: Params, x: Array,
           cond: dict[str, Any], keys: dict[str, Array], progress: Array, inputs: dict[str, Any] | None = None,
           index: Array | None = None, *, views: int, seed: int) -> tuple[Array, DistillationAux]:
  """Returns the scalar whose gradient is that of the distillation, and `score_distillation`'s aux.

  Args:
    distillation: the settings, with nothing left open.
    weight: of the gradient, a scheduled number.
    prior: the frozen diffusion model.
    prior_params: of `prior`; no gradient.
    x: [B, *x_shape], the encoded images; B is `views`, or this device's share of the views.
    cond: of `conditions.of_views` or `conditions.sides`.
    keys: of `step_keys`; t, distil, score and forget are consumed.
    progress: fraction of the run that is done, [] float32.
    inputs: what the estimator needs besides, by the names in `Estimator.needs`. source: `source_x` [B, *x_shape] and
      `source_cond`. score: `score`, the parameters phi of the second network, which the scalar also trains. camera:
      `camera` [B, CAMERA_DIM], where the views have cameras. image: `image` [B, S, S, 3], the images at the prior's
      size.
    index: [B] int32, numbers of these views among all views of the step; None: all.
    views: number of views of a step, over all devices.
    seed: of the run.
  """
  record = find(distillation.estimator)
  options, inputs, index = options_of(distillation, record), inputs or {}, _or_all(index, x)
  now = lambda value: schedule_value(value, progress)  # noqa: E731
  low, high = _t_range(distillation, prior, progress)
  t = _draw_t(distillation, prior, keys["t"], (low, high), index, views)
  scale = now(distillation.guidance_scale)
  # The Python number 0 leaves rescaling out of the program; a traced 0 would keep it in every step.
  rescale = 0.0 if distillation.guidance_rescale == 0.0 else now(distillation.guidance_rescale)
  denoise = guidance.guided(prior.denoise, distillation.guidance_convention, scale, rescale_phi=rescale,
                            group=prior.views,
                            x0_schedule=prior.schedule if distillation.rescale_space == "x0" else None)
  if "score" in record.needs:
    score_cond, training_cond = second_network.score_conditions(options, cond, inputs.get("camera"), keys["forget"])
    # The prior's parameters go along, because phi holds only adapters of its kernels.
    score_fn, score_params = second_network.make_score_fn(prior), (prior_params, inputs["score"])
    inputs = dict(inputs, score_fn=score_fn, score_params=score_params, score_cond=score_cond)
  moment = Moment(progress, seed, low, scale, guidance.NO_GUIDANCE[distillation.guidance_convention],
                  prior.prediction_type, prior.schedule, inputs, lambda x: prior.decode(prior_params, x))
  loss, aux = score_distillation(
      denoise, prior_params, prior.schedule, x, keys["distil"], cond, t=t, index=index,
      weighting=distillation.weighting, estimator=record.fn, options=record.keywords(options, moment),
      # The settings' 0.0 means no clipping; as a norm 0.0 would clip every gradient to zero.
      scale=now(weight), clip_norm=None if distillation.clip_norm == 0.0 else now(distillation.clip_norm),
      antithetic=distillation.antithetic_noise)
  if (term := record.second_term(options, moment, aux)) is not None:
    loss += _second_scalar(distillation, prior, now(weight), term, aux.t)
  if "score" in record.needs:
    # One scalar trains both: this loss stops the gradient in x, and the estimator the gradient in phi.
    loss += score_loss(score_fn, score_params, prior.schedule, x, keys["score"], training_cond, index=index,
                       group=prior.views)
  return loss, aux


def draw_t(distillation: DistillationSettings, prior: Prior, key: Array, progress: Array, index: Array,
           views: int) -> Array:
  """Returns t [B] int32 of views of a step.

  Args:
    distillation: settings of the range of t and of its sampler.
    prior: for its noise schedule.
    key: consumed.
    progress: fraction of the run that is done, [] float32.
    index: [B] int32, numbers of these views among all views of the step.
    views: number of views of a step, over all devices.
  """
  return _draw_t(distillation, prior, key, _t_range(distillation, prior, progress), index, views)


def _draw_t(distillation: DistillationSettings, prior: Prior, key: Array, t_range: tuple[Array, Array], index: Array,
            views: int) -> Array:
  draw = timesteps.SAMPLERS[distillation.t_sampler]
  # One t for all views of an object that the prior looks at together.
  return draw(key, index // prior.views, t_range, prior.schedule.alpha.shape[0], views // prior.views)


def _t_range(distillation: DistillationSettings, prior: Prior, progress: Array) -> tuple[Array, Array]:
  """Returns (low, high) of t at this moment of the run.

  Both are fractions of the schedule, [] each.
  """
  dreamtime = distillation.t_warp == "dreamtime"
  # DreamTime gives one t for each moment of the run; t_min and t_max only bound it.
  warp = "linear" if dreamtime else distillation.t_warp
  low, high = timesteps.annealed_range(distillation.t_min, distillation.t_max, progress, warp)
  if dreamtime:
    low = high = jnp.clip(timesteps.dreamtime(prior.schedule, progress), low, high)
  return low, high


def _or_all(index: Array | None, x: Array) -> Array:
  return jnp.arange(x.shape[0]) if index is None else index


def _second_scalar(distillation: DistillationSettings, prior: Prior, weight: Array, term: SecondGradient,
                   t: Array) -> Array:
  """Returns the scalar whose gradient is that of an estimator's second term."""
  weight = weight * term.weight * WEIGHTINGS[distillation.weighting](prior.schedule, t)
  # A mean over the batch, as `score_distillation` takes for the first term.
  cotangent = per_example(weight, term.residual) * term.residual / term.at.shape[0]
  return inject(term.at, jax.lax.stop_gradient(cotangent))
