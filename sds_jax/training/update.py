"""The second half of every step, whatever the images are of: average the gradients, move the parameters, or don't.

An update that is not finite is dropped as a whole: parameters, optimiser and estimator stay as they were, and the
step is counted. `divergence.py` looks at the counts and decides what to do about them.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.training import estimator_state
from sds_jax.training.config import MAX_STEPS
from sds_jax.training.parallel import Share
from sds_jax.training.state import TrainState, average
from sds_jax.types import Array, Params

StepFn = Callable[[TrainState, Params, Any, Array], tuple[TrainState, dict[str, Array]]]
"""(state, prior_params, text, key) -> (state, metrics)."""

LossFn = Callable[..., tuple[Array, dict[str, Array]]]
"""((params, score), state, prior_params, text, keys, index) -> (scalar, metrics), of the views `index` [B]."""

STREAMS = ("views", "rest", "shading", "t", "distil", "encode", "occupancy", "score", "forget")
"""What a step draws at random, each from its own key."""


def step_keys(key: Array, step: Array, restarts: Array | int = 0) -> dict[str, Array]:
  """A key for each of STREAMS, from the run's key, the number of the step and that of the restart ([] int32 each).

  The number of a restart stands in the bits above that of the step. How a step is shaded does not go by it: scenes that
  are made together share it, restarted or not.
  """
  split = lambda number: jax.random.split(jax.random.fold_in(key, number), len(STREAMS))  # noqa: E731
  keys = dict(zip(STREAMS, split(step + MAX_STEPS * restarts)))
  return dict(keys, shading=split(step)[STREAMS.index("shading")])


def progress_of(config: ml_collections.FrozenConfigDict, step: Array) -> Array:
  """The fraction [] float32 of the run that is done before step number `step` [] int32."""
  return step.astype(jnp.float32) / config.training.steps


def make_step(config: ml_collections.FrozenConfigDict, optimizer: optax.GradientTransformation, loss_fn: LossFn,
              look_again: Callable[[TrainState, Params, Array], Any] | None = None, share: Share = Share()) -> StepFn:
  """The step of a job.

  Pure; jit it with `donate_argnums=0`. `key` is the run's, the same at every step; metrics are float32 scalars, means
  over all views.

  Args:
    loss_fn: what is differentiated, of this device's views.
    look_again: (state, new params, key) -> the occupancy grid after the step; None: there is none.
    share: which views these are.
  """
  def step(state: TrainState, prior_params: Params, text: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
    keys = step_keys(key, state.step, state.health["restarts"])
    (grads, score_grads), metrics = share.mean(jax.grad(loss_fn, has_aux=True)(
        (state.params, estimator_state.learnt(config, state)), state, prior_params, text, keys,
        share.index(config.training.views)))
    slower = config.divergence.learning_rate_factor ** state.health["restarts"].astype(jnp.float32)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, _scaled(updates, slower))
    grid = look_again(state, params, keys["occupancy"]) if look_again else state.occupancy
    moved = TrainState(step=state.step + 1, params=params, opt_state=opt_state, occupancy=grid,
                       estimator=estimator_state.learn(config, state.estimator, score_grads, slower),
                       ema=average(state.ema, params, config.optimizer.ema_decay, state.step))
    metrics["grad_norm"] = optax.tree.norm(grads)
    return _unless_bad(state, moved, metrics, estimator_state.learning(config, moved))

  return step


def _scaled(tree: Any, factor: Array) -> Any:
  return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)


def _unless_bad(state: TrainState, moved: TrainState, metrics: dict[str, Array],
                learning: Any) -> tuple[TrainState, dict[str, Array]]:
  """`moved`, or where anything in it is not finite `state` with one more step and one more dropped update."""
  bad = ~(jnp.isfinite(metrics["grad_norm"]) & all_finite((moved.params, moved.opt_state, learning, moved.ema)))
  for leaf in jax.tree.leaves(moved.occupancy):  # in which infinity means: not looked at yet
    bad |= jnp.any(jnp.isnan(leaf))
  kept = jax.tree.map(lambda old, new: jnp.where(bad, old, new),
                      (state.params, state.opt_state, state.occupancy, state.estimator, state.ema),
                      (moved.params, moved.opt_state, moved.occupancy, moved.estimator, moved.ema))
  health = dict(state.health, dropped=state.health["dropped"] + bad.astype(jnp.int32),
                in_a_row=jnp.where(bad, state.health["in_a_row"] + 1, 0))
  counts = {name: health[name].astype(jnp.float32) for name in ("dropped", "in_a_row")}
  return TrainState(moved.step, *kept, health), dict(metrics, **counts)


def all_finite(tree: Any) -> Array:
  """Whether [] bool all floating-point numbers of a tree are finite."""
  # By the place of the first one that is not. A plain `all` becomes a chain of scalars, which XLA repeats in the
  # program of each leaf that depends on the answer: with hundreds of leaves most of a compilation's time.
  leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.argmin(jnp.array([True, *(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)])) == 0
