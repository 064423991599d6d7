"""The run: compile once, step until done, log, save; everything else is a pure function elsewhere."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from sds_jax import hosts
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.priors.prior import Prior
from sds_jax.training import divergence, jobs, outputs, resume, stages as stages_lib, workspace
from sds_jax.training.jobs import Job
from sds_jax.training.journal import Journal
from sds_jax.training.layout import Layout, make_layout
from sds_jax.training.recovery import Recovery
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class Interrupted(Exception):
  """The run was asked to stop (Ctrl-C or SIGTERM) and has saved itself; the message says at which step."""


@dataclasses.dataclass
class Progress:
  """What a run tells its caller: the state it ended with, how long things took in seconds, and when it began.

  `given_up` has the numbers of the scenes that have diverged, of a run of many.
  """
  state: TrainState
  timings: dict[str, float]
  started: float
  given_up: tuple[int, ...] = ()


def train(config: ml_collections.FrozenConfigDict, workdir: Path, prior: Prior, prior_params: Params,
          on_render: jobs.LookFn | None = None, job: Job | None = None, layout: Layout | None = None) -> Progress:
  """Optimise one object, or what else `job` says.

  Args:
    config: validated.
    workdir: exists and can be written to; gets `checkpoints/`, `config.json`, `metrics.jsonl`, TensorBoard's
      `events.*` and, every `training.guidance_every` steps, `progress/guidance_*.png`.
    prior, prior_params: of `priors.build`; the parameters are left as they are. With a `layout` they are in its places
      already (`Layout.put_prior`).
    on_render: called with (state, step) every `training.render_every` steps; must not keep the state.
    job: what the steps are; None: text-to-3D.
    layout: the devices; None: those of `make_layout`.

  Raises:
    ConfigError: the views cannot be spread over the devices.
    ResumeError: `config.resume` asks for a checkpoint that is not there, or the one that is there does not fit.
    Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    Diverged: updates are not finite, again and again.
  """
  began = time.perf_counter()
  job = job or jobs.text3d(config, prior)
  if layout is None:
    layout = make_layout(config, job.together)
    prior_params = layout.put_prior(prior_params)
  key, text = jax.random.key(config.seed), job.text()
  begin = functools.partial(jax.jit(lambda key, source: job.begin(layout.shapes(prior_params), text, key, source)),
                            jax.random.fold_in(key, 2**31 - 1))
  with _checkpoints(config, workdir) as checkpoints:
    like, new = jax.eval_shape(begin, None), lambda: begin(resume.source_of(config, job))  # noqa: E731
    state = layout.put_state(_first_state(config, workdir, checkpoints, like, new, prior, job))
    fixed = (prior_params, layout.put_text(text), layout.put(key))
    recovery = Recovery(config, workdir, checkpoints, layout, like, new, job.scenes)
    step_fns, compile_seconds = hosts.run_on_all(lambda: _compile(job, layout, state, fixed))
    with _sheets(config, workdir, job, layout, state, fixed) as on_guidance:
      started = time.perf_counter()
      run = _Run(config, workdir, layout, fixed, _folders(workdir, job), recovery, looks=[
          (config.training.render_every, on_render), (config.training.get("guidance_every", 0), on_guidance)])
      state = run.steps(functools.partial(stages_lib.at_step, job.stages, step_fns), state)
    timings = dict(compile_s=compile_seconds, optimise_s=time.perf_counter() - started)
    return Progress(layout.local(state), timings, began, recovery.given_up(layout.fetch(state.health)))


def _sheets(config: ml_collections.FrozenConfigDict, workdir: Path, job: Job, layout: Layout, state: TrainState,
            fixed: tuple) -> contextlib.AbstractContextManager[jobs.LookFn | None]:
  """The job's sheets, if any are wanted: made by one process, on one of its devices."""
  if not config.training.get("guidance_every", 0) or not hosts.is_first():
    return contextlib.nullcontext()
  return job.sheets(workdir, layout.local(state), layout.local(fixed))


def _folders(workdir: Path, job: Job) -> list[Path]:
  return [workdir / name for name in job.scenes.folders] if job.scenes else [workdir]


@contextlib.contextmanager
def _checkpoints(config: ml_collections.FrozenConfigDict, workdir: Path) -> Iterator[Checkpoints | None]:
  """Those of the run, in the process that writes; None in the others."""
  if not hosts.is_first():
    yield None
    return
  t = config.training
  with Checkpoints(workdir / "checkpoints", t.keep_checkpoints, t.keep_period) as checkpoints:
    yield checkpoints


def _first_state(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints | None,
                 like: TrainState, new: Callable[[], TrainState], prior: Prior, job: Job) -> TrainState:
  """Where the run begins, as process 0 finds it and all the others are told; the folder is made to agree with it."""
  def find() -> TrainState:
    state = resume.first_state(config, workdir, checkpoints, like, new, job)
    # Only now: where the settings do not fit what is there, config.json still tells those that made it.
    workspace.store_config(workdir, config, outputs.versions(), prior.source.as_dict())
    job.keep(workdir)
    if int(state.step) < config.training.steps:
      for folder in _folders(workdir, job):
        for old in (folder / "scores.json", *folder.glob("particle_*/scores.json")):
          old.unlink(missing_ok=True)  # of the objects before this run
    return state

  return hosts.broadcast_result(like, find)


def _compile(job: Job, layout: Layout, state: TrainState, fixed: tuple) -> tuple[list[Callable | None], float]:
  """Each stage's step as one executable that takes over the state's memory (None: behind us), and the seconds it took.

  All before the first step: what does not fit into the device's memory shows at once.
  """
  compiled, started = [], time.perf_counter()
  for stage, over in zip(job.stages, stages_lib.are_over(job.stages, int(layout.fetch(state.step)))):
    if over:
      compiled.append(None)
      continue
    before = time.perf_counter()
    print(f"compiling the step{f' at {stage}' if len(job.stages) > 1 else ''}{layout} ... ", end="", flush=True)
    compiled.append(layout.compile(job.make_step(stage, layout.share), state, fixed))
    print(f"{time.perf_counter() - before:.1f} s")
  return compiled, time.perf_counter() - started


@dataclasses.dataclass
class _Run:
  """The steps of a run and what is done between them.

  Attributes:
    fixed: what every step gets besides the state.
    folders: where the metrics of each scene go, or of the one object.
    recovery: the way back, and the checkpoints.
    looks: pairs (every so many steps, (state, step) -> None).
  """
  config: ml_collections.FrozenConfigDict
  workdir: Path
  layout: Layout
  fixed: tuple
  folders: list[Path]
  recovery: Recovery
  looks: list[tuple[int, jobs.LookFn | None]]

  def steps(self, step_at: Callable[[int], Callable], state: TrainState) -> TrainState:
    """Steps until done or stopped. `step_at` gives the executable for the step of a number.

    Nothing is fetched from the device but the metrics, every `log_every` steps, and what the looks ask for.
    """
    t = self.config.training
    done, pending = int(self.layout.fetch(state.step)), []
    with _stop_requests() as stop, Journal(self.workdir, self.folders, done, t.steps) as journal:
      while done < t.steps:
        with jax.transfer_guard("disallow"):
          state, metrics = step_at(done)(state, *self.fixed)
        # While the device works on this step the last checkpoint is written to its end: a kill costs no more than the
        # steps since the one before it.
        if self.recovery.checkpoints is not None:
          self.recovery.checkpoints.wait()
        done += 1
        pending.append(metrics)
        journal.tick()
        if done % t.log_every == 0 or done == t.steps:
          fetched, pending = self.layout.fetch(pending), []
          journal.log(done, fetched)
          bad = divergence.out_of_patience(self.config, fetched)
          if np.any(bad):
            before = done
            state, done = self.recovery.go_back(state, done, bad)
            if done < before:
              journal.go_back(done)
              continue
        self._look(state, done)
        stopped = self._stopped(stop, done)
        if done % t.checkpoint_every == 0 or done == t.steps or stopped:
          self._save(state, done)
        if stopped and done < t.steps:
          raise Interrupted(f"stopped at step {done} of {t.steps}; saved in {self.workdir / 'checkpoints'}; "
                            "the same command goes on from there")
      journal.close(self.layout.fetch(state.health))
    return state

  def _stopped(self, stop: list[int], done: int) -> bool:
    """Whether to stop after this step. Several processes ask each other, but not at every step."""
    if jax.process_count() == 1:
      return bool(stop)
    return done % self.config.training.log_every == 0 and hosts.any_process(bool(stop))

  def _look(self, state: TrainState, done: int) -> None:
    due = [look for every, look in self.looks
           if every and look and done % every == 0 and done < self.config.training.steps]
    if not due:
      return
    here = self.layout.local(state)
    for look in due if hosts.is_first() else ():
      look(here, done)

  def _save(self, state: TrainState, done: int) -> None:
    state = self.layout.local(state)
    if self.recovery.checkpoints is None:
      return
    about = dict(config=self.config.to_dict(), versions=outputs.versions(),
                 key=jax.random.key_data(jax.random.key(self.config.seed)).tolist(),
                 **self.recovery.about(jax.device_get(state.health)))
    self.recovery.checkpoints.save(done, state, about)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """A list that is empty until Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once, without saving."""
  received: list[int] = []

  def note(number: int, frame: Any) -> None:
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(number)

  before = {}
  try:
    for number in (signal.SIGINT, signal.SIGTERM):
      before[number] = signal.signal(number, note)
  except ValueError:  # not in the main thread, where signals cannot be caught
    pass
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
