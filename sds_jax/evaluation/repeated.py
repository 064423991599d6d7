"""A job that is compiled once and run many times, with other words or pictures and other seeds."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from sds_jax.training import layout as layout_lib, stages
from sds_jax.training.jobs import Job
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class Repeated:
  """One executable of each stage of a job and one prior, for any number of runs; each ends as the command's would where
  nothing diverges.

  Args:
    config: of the job, with the devices.
    job: whose `text` is not asked for: each run has its own.
    prior_params: of its prior, or priors, on one device.
  """

  def __init__(self, config: ml_collections.FrozenConfigDict, job: Job, prior_params: Params):
    self.config, self.scene = config, job.stages[0].scene
    self._job, self._layout = job, layout_lib.make_layout(config, job.together)
    self._params = self._layout.put_prior(prior_params)
    self._begin = jax.jit(lambda text, key: job.begin(self._layout.shapes(self._params), text, key, None))
    self._steps: list[Callable[..., Any]] = []

  def optimise(self, text: Any, seed: int) -> TrainState:
    """The finished state of one run, on one device. `text` is what `job.text()` of that run is."""
    state, fixed = self.begin(text, seed)
    return self._layout.local(self.advance(state, fixed, range(self.config.training.steps)))

  def begin(self, text: Any, seed: int) -> tuple[TrainState, tuple]:
    """The state before the first step, and what `advance` wants besides."""
    key = jax.random.key(seed)
    state = self._layout.put_state(self._begin(text, jax.random.fold_in(key, 2**31 - 1)))
    return state, (self._params, self._layout.put_text(text), self._layout.put(key))

  def advance(self, state: TrainState, fixed: tuple, numbers: range) -> TrainState:
    """The state after the steps `numbers`; takes over the memory of `state`."""
    self._steps = self._steps or [self._layout.compile(self._job.make_step(stage, self._layout.share), state, fixed)
                                  for stage in self._job.stages]
    for number in numbers:
      state, _ = stages.at_step(self._job.stages, self._steps, number)(state, *fixed)
    return jax.block_until_ready(state)
