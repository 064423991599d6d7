"""Repeated runs of one compiled program with different conditions and seeds."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sds_jax.generators.protocol import Generator
from sds_jax.prng import seeded_key
from sds_jax.training import stages
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.program import Program
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class RepeatedRuns:
  """Any number of runs of one program, one executable a stage.

  A run ends in the state that the command's run reaches when all updates are finite.

  Attributes:
    generator: of the first stage.
    steps: number of steps of a run.
  """

  def __init__(self, program: Program, layout: DeviceLayout, prior_params: Params, steps: int):
    """Puts the prior onto the devices; the first run compiles.

    Args:
      program: its `embed` is not called; every run has its own conditions.
      layout: the devices.
      prior_params: of one prior, or of several, on one device.
      steps: number of steps of a run.
    """
    self.generator: Generator = program.stages[0].generator
    self.steps = steps
    self._program, self._layout, self._params = program, layout, layout.put_prior(prior_params)
    shapes = layout.shapes(self._params)  # shapes alone: a new state reads no values of the prior
    self._begin = jax.jit(lambda conditions, key: program.begin(shapes, conditions, key, None))
    self._executables: list[Callable[..., Any]] = []

  def optimise(self, conditions: Any, seed: int) -> TrainState:
    """Returns the last state of one run, on one device.

    `conditions` are what `Program.embed` would return.
    """
    state, fixed = self.begin(conditions, seed)
    return self._layout.local(self.advance(state, fixed, range(self.steps)))

  def begin(self, conditions: Any, seed: int) -> tuple[TrainState, tuple]:
    """Returns the state before the first step, and the other arguments of `advance`."""
    key = seeded_key(seed)
    # The same fold as in `training.loop`, so that a run here equals the command's run of the seed.
    state = self._layout.put_state(self._begin(conditions, jax.random.fold_in(key, 2**31 - 1)))
    return state, (self._params, self._layout.put_conditions(conditions), self._layout.put(key))

  def advance(self, state: TrainState, fixed: tuple, numbers: range) -> TrainState:
    """Returns the state after the steps `numbers`; `state` is donated."""
    # Shapes are equal in all runs, so the first run's arguments serve for compilation.
    self._executables = self._executables or [
        self._layout.compile(self._program.make_step(stage, self._layout.share), state, fixed)
        for stage in self._program.stages]
    for number in numbers:
      state, _ = stages.at_step(self._program.stages, self._executables, number)(state, *fixed)
    # For callers that take the time: dispatch returns at once.
    return jax.block_until_ready(state)
