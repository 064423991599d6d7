"""One step of image-to-3D: views for the priors as in text-to-3D, and the picture's own view beside them.

  picture -> seen by the prior, once for a run
  views   -> render -> distil, told where each stands relative to the picture         `step.observe`
  its own -> render -> losses against the picture                                     `reference.losses`
  views   -> distil once more, told words, where a second prior is (Magic123, arXiv:2306.17843)
"""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import ConfigDict

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.priors import published
from sds_jax.priors.prior import Prior
from sds_jax.training import conditions, config as config_lib, losses, reference, step as step_lib, update
from sds_jax.training.config import scalar_spec
from sds_jax.training.distil import distil
from sds_jax.training.parallel import Share
from sds_jax.training.state import TrainState
from sds_jax.training.step import Scene
from sds_jax.training.update import StepFn, progress_of
from sds_jax.types import Array, Params

Told = dict[str, Any]
"""What a run knows of its picture: `seen` (`Sight.see`), `azimuth` and `elevation` [] radians, `picture` [S, S, 4],
perhaps `depth` or `disparity` [S, S, 2], `normals` [S, S, 4]; and, for a second prior, `words` (`conditions.Text`)."""


def words_config(config: ml_collections.FrozenConfigDict) -> ml_collections.FrozenConfigDict:
  """The settings of the second prior and of its distillation: SDS of its own scale, with t as the other has it."""
  own, words = ConfigDict(config.to_dict()), config.words
  own.job = "text3d"
  own.prior.update(name=words.prior, path=words.path, random_weights=(
      config.prior.random_weights and not words.path and words.prior in published.PRIORS))
  own.distillation.update(estimator="sds", guidance_convention="diffusers", guidance_scale=config.words.guidance_scale,
                          weighting="sigma2", view_words="nearest")
  own.loss.sds = config.loss.words
  return config_lib.freeze(own)


def make_step(scene: Scene, prior: Prior, words: Prior | None = None, share: Share = Share()) -> StepFn:
  """The step (state, prior_params, told, key) -> (state, metrics) of `update.make_step`.

  Args:
    prior: that is told the picture; its parameters are `prior_params`.
    words: that is told words; its parameters are `prior_params["words"]`.
  """
  config = scene.config

  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, told: Told,
              keys: dict[str, Array], index: Array) -> tuple[Array, dict[str, Array]]:
    params, score = learnt
    progress = progress_of(config, state.step)
    views = step_lib.observe(scene, prior, params, state, prior_params, told, keys, index)
    loss, aux = distil(config, prior, prior_params, views.x, views.cond, keys, progress, dict(views.own, score=score),
                       index)
    if words:
      more, grad_norm = _told_words(scene, words, prior_params["words"], told["words"], views, keys, progress, index)
      loss, own_metrics = loss + more, dict(words_grad_norm=grad_norm)
    else:
      own_metrics = {}
    terms = {name: fn(views.out) for name, fn in losses.LOSSES.items()}
    for name, value in terms.items():
      loss += schedule_value(scalar_spec(config.loss[name]), progress) * value
    # No view has this index, so that the picture's own view draws alike on every device, and as nothing else does.
    own_key = jax.random.fold_in(keys["rest"], config.training.views)
    own_loss, own_terms = reference.losses(scene, params, state.occupancy, told, own_key, progress)
    metrics = dict(terms, sds_grad_norm=jnp.mean(aux.grad_norm), mean_opacity=jnp.mean(views.out.opacity),
                   **own_metrics, **own_terms, **views.metrics)
    return loss + own_loss, metrics

  return update.make_step(config, scene.optimizer, loss_fn, functools.partial(step_lib.look_again, scene), share)


def _told_words(scene: Scene, words: Prior, params: Params, text: conditions.Text, views: step_lib.Views,
                keys: dict[str, Array], progress: Array, index: Array) -> tuple[Array, Array]:
  """The scalar of the second prior's distillation, of the same renders, and its gradient's mean norm."""
  config = words_config(scene.config)
  keys = {name: jax.random.fold_in(key, 1) for name, key in keys.items()}
  x = step_lib.encode_each(words, params, views.out.rgb, keys["encode"], index)
  cond = conditions.of_views(words, params, config, text, *views.places, progress)
  loss, aux = distil(config, words, params, x, cond, keys, progress, None, index)
  return loss, jnp.mean(aux.grad_norm)
