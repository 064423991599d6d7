"""The part of the state that an estimator keeps between steps, `TrainState.estimator`.

An estimator that needs a second network keeps dict(score=phi, opt_state=...); one that needs a source keeps
dict(params=..., occupancy=...) of the source, which never changes; others keep None.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sds_jax.diffusion.estimators import find, options_of
from sds_jax.priors.prior import Prior
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import second_network, view_conditions
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params


def estimator_key(key: Array) -> Array:
  """Returns a key for `start`, from the key of a new state.

  The key is independent of the keys that `split` derives from `key`.
  """
  # No step has this number: `step_keys` folds in at most MAX_STEPS times one more than the restarts.
  return jax.random.fold_in(key, 2**31 - 1)


def start(distillation: DistillationSettings, prior: Prior, prior_params: Params, conditions: dict[str, Any],
          state: TrainState, key: Array, source: TrainState | None = None) -> TrainState:
  """Returns a state before its first update, with the part of the estimator.

  The function is pure.

  Args:
    distillation: settings that name the estimator.
    prior: the frozen diffusion model.
    prior_params: of `prior`.
    conditions: of the run, as the prior embeds them.
    state: without the part of the estimator.
    key: consumed.
    source: the state that is edited, of the same parameters; also the start of the run. None: `state` itself.
  """
  record = find(distillation.estimator)
  if source is not None:
    state = dataclasses.replace(state, params=source.params, occupancy=source.occupancy,
                                ema=None if state.ema is None else jax.tree.map(jnp.copy, source.params))
  kept = {}
  if "source" in record.needs:
    # Copies: the step takes over the state's memory, in which no array may occur twice.
    kept |= jax.tree.map(jnp.copy, dict(params=state.params, occupancy=state.occupancy))
  if "score" in record.needs:
    options = options_of(distillation, record)
    phi = second_network.init(options, prior, prior_params, view_conditions.text_dim(conditions, prior), key)
    kept |= dict(score=phi, opt_state=second_network.make_optimizer(options).init(phi))
  return dataclasses.replace(state, estimator=kept) if kept else state


def learnt(distillation: DistillationSettings, state: TrainState) -> Params:
  """Returns the parameters phi of the second network; {} without one.

  A step moves phi beside the parameters of the images.
  """
  return state.estimator["score"] if _has_network(distillation) else {}


def learning(distillation: DistillationSettings, state: TrainState) -> Any:
  """Returns the part of the estimator's state that updates change; None without a second network."""
  return {name: state.estimator[name] for name in ("score", "opt_state")} if _has_network(distillation) else None


def learn(distillation: DistillationSettings, kept: Any, grads: Params, slower: Array | float = 1.0) -> Any:
  """Returns the estimator's part of the state after a step.

  Args:
    distillation: settings that name the estimator.
    kept: `TrainState.estimator` before the step.
    grads: gradient with respect to `learnt`.
    slower: factor on the update.
  """
  if not _has_network(distillation):
    return kept
  optimizer = second_network.make_optimizer(options_of(distillation, find(distillation.estimator)))
  updates, opt_state = optimizer.update(grads, kept["opt_state"], kept["score"])
  # Cast, because strict dtype promotion refuses float32 times another floating dtype.
  updates = jax.tree.map(lambda leaf: jnp.asarray(slower, leaf.dtype) * leaf, updates)
  return dict(kept, score=optax.apply_updates(kept["score"], updates), opt_state=opt_state)


def _has_network(distillation: DistillationSettings) -> bool:
  return "score" in find(distillation.estimator).needs
