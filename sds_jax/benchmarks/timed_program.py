"""A program that has begun and is compiled, for benchmarks that time its steps."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from sds_jax.prng import seeded_key
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.program import Program
from sds_jax.types import Params


class TimedProgram:
  """The first stage of a program, laid out over devices.

  Attributes:
    step: the executable.
    state: where the run stands, on the devices.
  """

  def __init__(self, program: Program, layout: DeviceLayout, prior_params: Params,
               step: Callable[..., Any] | None = None):
    """Makes the first state, and compiles the step.

    Args:
      program: the run.
      layout: the devices.
      prior_params: of the prior, in this process.
      step: the executable of another program with the same shapes, used instead of compiling.
    """
    key, conditions = seeded_key(0), program.embed()
    begin = jax.jit(lambda key: program.begin(prior_params, conditions, key, None))
    self._fixed = (layout.put_prior(prior_params), layout.put_conditions(conditions), layout.put(key))
    self.state = layout.put_state(begin(jax.random.fold_in(key, 1)))
    self.step = step or layout.compile(program.make_step(program.stages[0], layout.share), self.state, self._fixed)

  def run(self, steps: int) -> float:
    """Runs this many steps, and returns the seconds."""
    started = time.perf_counter()
    for _ in range(steps):
      self.state, _ = self.step(self.state, *self._fixed)
    # Waits once: a wait for each step would keep the dispatch of the next step from overlapping.
    jax.block_until_ready(self.state)
    return time.perf_counter() - started

  def params(self) -> Any:
    """Returns the learnt parameters as numpy arrays."""
    return jax.device_get(self.state.params)
