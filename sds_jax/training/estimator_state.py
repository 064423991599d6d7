"""What an estimator keeps between steps, in `TrainState.estimator`: VSD's second network, or the source of an edit."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.priors.prior import Prior
from sds_jax.training import score_network, view_conditions
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params

EDITS = ("dds", "pds")
"""Estimators that hold the images against those of a source."""


def own_key(key: Array) -> Array:
  """A key for `start` out of that of the whole beginning, apart from those that `split` makes of it for parameters."""
  return jax.random.fold_in(key, 2**31 - 1)


def start(config: ml_collections.FrozenConfigDict, prior: Prior, prior_params: Params, text: dict[str, Array],
          state: TrainState, key: Array, source: TrainState | None = None) -> TrainState:
  """A state before its first update with what its estimator keeps; pure, consumes `key`.

  Args:
    text: of `conditions.embed_prompts` or `image2d.embed_prompts`.
    source: what is edited, of the same parameters; it is also where the run begins. None: the run's own beginning.
  """
  if source is not None:
    state = dataclasses.replace(state, params=source.params, occupancy=source.occupancy,
                                ema=None if state.ema is None else jax.tree.map(jnp.copy, source.params))
  kind = config.distillation.estimator
  if kind in EDITS:
    # Copies, for the state's memory is taken over by the step and may hold nothing twice.
    kept = jax.tree.map(jnp.copy, dict(params=state.params, occupancy=state.occupancy))
    return dataclasses.replace(state, estimator=kept)
  if kind == "vsd":
    phi = score_network.init(config, prior, prior_params, view_conditions.text_dim(text, prior), key)
    return dataclasses.replace(state, estimator=dict(
        score=phi, opt_state=score_network.make_optimizer(config).init(phi)))
  return state


def learning(config: ml_collections.FrozenConfigDict, state: TrainState) -> Any:
  """What of the estimator's state moves with the steps: all of VSD's, nothing of an edit's source."""
  return state.estimator if config.distillation.estimator == "vsd" else None


def learnt(config: ml_collections.FrozenConfigDict, state: TrainState) -> Params:
  """The parameters that a step moves beside the images': those of VSD's second network, or nothing."""
  return state.estimator["score"] if config.distillation.estimator == "vsd" else {}


def learn(config: ml_collections.FrozenConfigDict, kept: Any, grads: Params, slower: Array | float = 1.0) -> Any:
  """What the estimator keeps after a step, in which `learnt` had the gradient `grads`; `slower` scales the update."""
  if config.distillation.estimator != "vsd":
    return kept
  updates, opt_state = score_network.make_optimizer(config).update(grads, kept["opt_state"], kept["score"])
  updates = jax.tree.map(lambda leaf: jnp.asarray(slower, leaf.dtype) * leaf, updates)
  return dict(score=optax.apply_updates(kept["score"], updates), opt_state=opt_state)
