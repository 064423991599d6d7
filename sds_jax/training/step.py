"""One step of every task as a pure function: render, add up the terms, average over devices, move the parameters.

  step, key -> cameras, light, shading, t, noise      fold_in(key, step), then the number of each view
  params    -> generator.render -> views -> terms     distillation, losses of a reference view, regularisers
  gradient  -> mean over devices -> optax             dropped as a whole where a number is not finite

`divergence.py` reads the counts of dropped updates and decides what follows.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from sds_jax.generators.protocol import Draws, Generator, Views
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import estimator_state
from sds_jax.training.keys import progress_at, step_keys
from sds_jax.training.optimizer import average
from sds_jax.training.parallel import Share
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params

StepFn = Callable[[TrainState, Params, Any, Array], tuple[TrainState, dict[str, Array]]]
"""(state, prior_params, conditions, key) -> (state, metrics)."""


class Context(NamedTuple):
  """The inputs of a term besides the views.

  Attributes:
    params: of the generator; differentiated.
    state: before the step; not differentiated.
    score_params: of the estimator's second network, differentiated; {} without one.
    prior_params: of the priors.
    conditions: of the run, as the task embeds them.
    draws: of the step.
  """
  params: Params
  state: TrainState
  score_params: Params
  prior_params: Params
  conditions: Any
  draws: Draws


class Term(Protocol):
  """A summand of the loss."""

  def __call__(self, views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
    """Returns a scalar to differentiate, and [] float32 metrics for the log."""


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """The options of a step that are fixed for a run.

  Attributes:
    distillation: names the estimator, whose second network the same gradient may train.
    views: number of views of a step, over all devices.
    steps: number of steps of the run.
    ema_decay: of the average of the parameters; 0: none.
    restart_factor: factor of the learning rate at each restart.
  """
  distillation: DistillationSettings
  views: int
  steps: int
  ema_decay: float = 0.0
  restart_factor: float = 1.0


def make_step(generator: Generator, terms: Sequence[Term], optimizer: optax.GradientTransformation,
              options: StepOptions, share: Share = Share()) -> StepFn:
  """Returns the step of a run.

  The step is pure, to be jitted with `donate_argnums=0`.

  Args:
    generator: renders the views from the optimised parameters.
    terms: summands of the loss; all work on one render.
    optimizer: of the generator's parameters.
    options: fixed for the run.
    share: this device's views.

  Returns:
    (state, prior_params, conditions, key) -> (state, metrics). `key` is the run's, the same at every step. Metrics are
    means over all views.
  """
  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, conditions: Any,
              draws: Draws) -> tuple[Array, dict[str, Array]]:
    params, score_params = learnt
    views = generator.render(params, state.occupancy, draws)
    context = Context(params, state, score_params, prior_params, conditions, draws)
    loss, metrics = jnp.zeros(()), dict(views.metrics)
    for term in terms:
      value, term_metrics = term(views, context)
      loss, metrics = loss + value, metrics | term_metrics
    return loss, metrics

  def step(state: TrainState, prior_params: Params, conditions: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
    keys, progress = step_keys(key, state.step, state.health["restarts"]), progress_at(state.step, options.steps)
    draws = Draws(keys, share.index(options.views), progress)
    # Averaged before the optimiser, so that every device makes the same update of its copy of the state.
    (grads, score_grads), metrics = share.mean(jax.grad(loss_fn, has_aux=True)(
        (state.params, estimator_state.learnt(options.distillation, state)), state, prior_params, conditions, draws))
    # Traced, so that a restart changes the rate without another compilation.
    rate = options.restart_factor ** state.health["restarts"].astype(jnp.float32)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # On the update and not on the gradient, whose length Adam ignores.
    params = optax.apply_updates(state.params, _scaled(updates, rate))
    moved = TrainState(
        step=state.step + 1, params=params, opt_state=opt_state,
        # With the new parameters, which the next step renders.
        occupancy=generator.update_buffers(params, state.occupancy, state.step, progress, keys["occupancy"]),
        estimator=estimator_state.learn(options.distillation, state.estimator, score_grads, rate),
        ema=average(state.ema, params, options.ema_decay, state.step))
    # Of the averaged gradient, so that all devices agree on whether to drop the update.
    metrics["grad_norm"] = optax.tree.norm(grads)
    return _unless_bad(state, moved, metrics, estimator_state.learning(options.distillation, moved))

  return step


def _scaled(tree: Any, factor: Array) -> Any:
  return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)


def _unless_bad(state: TrainState, moved: TrainState, metrics: dict[str, Array],
                learning: Any) -> tuple[TrainState, dict[str, Array]]:
  """Returns `moved`, or `state` if `moved` is not finite.

  The returned `state` has the next step number and counts a dropped update.

  Args:
    state: before the step.
    moved: after the step.
    metrics: of the step, with `grad_norm`.
    learning: the part of the estimator's state that an update changes.
  """
  bad = ~(jnp.isfinite(metrics["grad_norm"]) & all_finite((moved.params, moved.opt_state, learning, moved.ema)))
  for leaf in jax.tree.leaves(moved.occupancy):  # infinity in an occupancy grid means: not looked at yet
    bad |= jnp.any(jnp.isnan(leaf))
  # Both states exist by now, so a `cond` would save nothing; `where` is not differentiated here.
  kept = jax.tree.map(lambda old, new: jnp.where(bad, old, new),
                      (state.params, state.opt_state, state.occupancy, state.estimator, state.ema),
                      (moved.params, moved.opt_state, moved.occupancy, moved.estimator, moved.ema))
  health = dict(state.health, dropped=state.health["dropped"] + bad.astype(jnp.int32),
                in_a_row=jnp.where(bad, state.health["in_a_row"] + 1, 0))
  counts = {name: health[name].astype(jnp.float32) for name in ("dropped", "in_a_row")}
  # A dropped update counts as a step, too, so that the next one has other draws.
  return TrainState(moved.step, *kept, health), dict(metrics, **counts)


def all_finite(tree: Any) -> Array:
  """Returns whether [] bool all floating-point numbers of a tree are finite."""
  # By the position of the first non-finite array. A plain `all` becomes a chain of scalars, which XLA repeats in the
  # program of each leaf that depends on the answer: with hundreds of leaves most of a compilation's time.
  leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.argmin(jnp.array([True, *(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)])) == 0
