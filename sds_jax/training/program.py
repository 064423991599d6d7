"""The functions of a run for the loop."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from sds_jax.generators.protocol import Generator
from sds_jax.priors.prior import Prior
from sds_jax.training import estimator_state
from sds_jax.training.optimizer import make_optimizer
from sds_jax.training.parallel import Share
from sds_jax.training.scenes import SceneList
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState, init_state
from sds_jax.training.step import StepFn, StepOptions, Term, make_step
from sds_jax.types import Array, Params

LookFn = Callable[[TrainState, int], None]
"""(state, step) -> None; must not keep the state."""

SheetsFn = Callable[[Path, TrainState, tuple], contextlib.AbstractContextManager[LookFn | None]]
"""(workdir, state, (prior_params, conditions, key)) -> a context that yields a look for `training.guidance_every`."""


def no_sheets(workdir: Path, state: TrainState, fixed: tuple) -> contextlib.AbstractContextManager[None]:
  """Returns a context without guidance sheets."""
  del workdir, state, fixed
  return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Program:
  """A run as functions; the loop knows neither renders nor priors.

  Attributes:
    stages: in order, one compiled program each; the first begins at step 0.
    new_state: (key) -> a new state without the estimator's part; pure.
    begin: (prior_params or their shapes, conditions, key, source or None) -> the state before the first update; pure.
    embed: () -> the conditions of the prior, as the step takes them.
    make_step: (stage, share of the views) -> step; pure.
    terms: (stage) -> the summands of its loss.
    sheets: makes the guidance sheets.
    together: number of neighbouring views that one device must hold.
    scenes: the scenes of a run of many, whose state and conditions have a leading axis; else None.
    check_inputs: (workdir) raises ResumeError if the checkpoints there were made from other inputs than this run's;
      called by process 0.
    keep_inputs: (workdir) copies the run's inputs into the folder, once it is certain that the run continues there.
  """
  stages: Sequence[Stage]
  new_state: Callable[[Array], TrainState]
  begin: Callable[[Params, Any, Array, TrainState | None], TrainState]
  embed: Callable[[], Any]
  make_step: Callable[[Stage, Share], StepFn]
  terms: Callable[[Stage], Sequence[Term]]
  sheets: SheetsFn = no_sheets
  together: int = 1
  scenes: SceneList | None = None
  check_inputs: Callable[[Path], None] = lambda workdir: None
  keep_inputs: Callable[[Path], None] = lambda workdir: None


def step_options(settings: Any) -> StepOptions:
  """Returns the options of a step; `settings` is the tree of any task."""
  return StepOptions(settings.distillation, settings.training.views, settings.training.steps,
                     settings.optimizer.ema_decay, settings.divergence.learning_rate_factor)


def make_program(settings: Any, stages: Sequence[Stage], terms: Callable[[Stage], Sequence[Term]], prior: Prior,
                 embed: Callable[[], Any], sheets: SheetsFn = no_sheets) -> Program:
  """Joins generator, terms and optimiser into a program.

  Args:
    settings: the tree of any task.
    stages: in order; all have the same parameters.
    terms: (stage) -> the summands of its loss.
    prior: the prior whose estimator keeps a state.
    embed: () -> the conditions of the prior.
    sheets: makes the guidance sheets.
  """
  # All stages have the same parameters, so the first stage's generator can begin them.
  generator = stages[0].generator
  optimizer = make_optimizer(settings.optimizer, settings.training.steps)
  averaged = settings.optimizer.ema_decay > 0

  def new(key: Array) -> TrainState:
    return new_state(generator, optimizer, key, averaged)

  def begin(prior_params: Params, conditions: Any, key: Array, source: TrainState | None) -> TrainState:
    return estimator_state.start(settings.distillation, prior, prior_params, conditions, new(key),
                                 estimator_state.estimator_key(key), source)

  def step(stage: Stage, share: Share) -> StepFn:
    return make_step(stage.generator, terms(stage), optimizer, step_options(settings), share)

  return Program(stages, new, begin, embed, step, terms, sheets, generator.together)


def new_state(generator: Generator, optimizer: Any, key: Array, averaged: bool = False) -> TrainState:
  """Returns a state before its first update, without the estimator's part.

  Consumes `key`.
  """
  params, buffers = generator.init(key)
  return init_state(params, optimizer, buffers, averaged)


def abstract_state(program: Program) -> TrainState:
  """Returns the shapes of a state without the estimator's part."""
  return jax.eval_shape(lambda: program.new_state(jax.random.key(0)))
