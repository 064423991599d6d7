"""A run of a job that is begun and compiled, for those that time its steps."""
from __future__ import annotations

from collections.abc import Callable
import time
from typing import Any

import jax

from sds_jax.training.jobs import Job
from sds_jax.training.layout import Layout
from sds_jax.types import Params


class Run:
  """The first stage of a job, laid out over devices; `step` is its executable and `state` where it stands.

  Args:
    job, layout: what is run, and on what.
    params: of the prior.
    step: the executable of another run of the same shapes; None: compiled here.
  """

  def __init__(self, job: Job, layout: Layout, params: Params, step: Callable[..., Any] | None = None):
    key, text = jax.random.key(0), job.text()
    new = jax.jit(lambda key: job.begin(params, text, key, None))(jax.random.fold_in(key, 1))
    self._fixed = (layout.put_prior(params), layout.put_text(text), layout.put(key))
    self.state = layout.put_state(new)
    self.step = step or layout.compile(job.make_step(job.stages[0], layout.share), self.state, self._fixed)

  def run(self, steps: int) -> float:
    """Seconds of so many steps."""
    started = time.perf_counter()
    for _ in range(steps):
      self.state, _ = self.step(self.state, *self._fixed)
    jax.block_until_ready(self.state)
    return time.perf_counter() - started

  def params(self) -> Any:
    """What has been learnt, as numpy arrays."""
    return jax.device_get(self.state.params)
