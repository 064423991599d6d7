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
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class Interrupted(Exception):
  """The run was asked to stop (Ctrl-C or SIGTERM) and has saved itself; the message says at which step."""


@dataclasses.dataclass
class Progress:
  """What a run tells its caller: the state it ended with, how long things took in seconds, and when it began."""
  state: TrainState
  timings: dict[str, float]
  started: float


def train(config: ml_collections.FrozenConfigDict, workdir: Path, prior: Prior, prior_params: Params,
          on_render: jobs.LookFn | None = None, job: Job | None = None, layout: Layout | None = None) -> Progress:
  """Optimise one object, or what else `job` says.

  Args:
    config: validated.
    workdir: exists and can be written to; gets `checkpoints/`, `config.json`, `metrics.jsonl`, TensorBoard's
      `events.*` and, every `training.guidance_every` steps, `progress/guidance_*.png`.
    prior, prior_params: of `priors.build`; the parameters are left as they are, perhaps in the layout's places already.
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
  layout = layout or make_layout(config, job.together)
  key = jax.random.key(config.seed)
  text = job.text()
  begin = jax.jit(lambda key, source: job.begin(_shapes(prior_params), text, key, source))
  with _checkpoints(config, workdir) as checkpoints:
    new = functools.partial(begin, jax.random.fold_in(key, 2**31 - 1), _source(config, checkpoints, job))
    state = layout.put(_first_state(config, workdir, checkpoints, new(), prior))
    fixed = (layout.put_prior(prior_params), layout.put(text), layout.put(key))
    run = _Run(config, workdir, checkpoints, layout, fixed, new)
    step_fns, compile_seconds = _compile(job, layout, state, fixed)
    looked_at = (prior_params, text, key)
    with job.sheets(workdir, layout.local(state), looked_at) as on_guidance:
      started = time.perf_counter()
      run.looks = [(config.training.render_every, on_render), (config.training.get("guidance_every", 0), on_guidance)]
      state = run.steps(functools.partial(stages_lib.at_step, job.stages, step_fns), state)
    timings = dict(compile_s=compile_seconds, optimise_s=time.perf_counter() - started)
  return Progress(layout.local(state), timings, began)


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@contextlib.contextmanager
def _checkpoints(config: ml_collections.FrozenConfigDict, workdir: Path) -> Iterator[Checkpoints | None]:
  """Those of the run, in the process that writes; None in the others."""
  if not hosts.is_first():
    yield None
    return
  t = config.training
  with Checkpoints(workdir / "checkpoints", t.keep_checkpoints, t.keep_period) as checkpoints:
    yield checkpoints


def _source(config: ml_collections.FrozenConfigDict, checkpoints: Checkpoints | None, job: Job) -> TrainState | None:
  """What is edited, unless the run goes on from a checkpoint of its own, which holds it."""
  if checkpoints is not None and checkpoints.latest() is not None and config.resume != "never":
    return None
  return resume.source_of(config, job)


def _first_state(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints | None,
                 new: TrainState, prior: Prior) -> TrainState:
  """Where the run begins, as process 0 finds it and all the others are told; the folder is made to agree with it."""
  state, problem = new, None
  if checkpoints is not None:
    try:
      state = resume.first_state(config, workdir, checkpoints, new)
      # Only now: where the settings do not fit what is there, config.json still tells those that made it.
      workspace.store_config(workdir, config, outputs.versions(), prior.source.as_dict())
      if int(state.step) < config.training.steps:
        for old in (workdir / "scores.json", *workdir.glob("particle_*/scores.json")):
          old.unlink(missing_ok=True)  # of the objects before this run
    except (ValueError, OSError) as error:
      problem = error
  hosts.all_well(problem)
  return hosts.from_first(state)


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
    new: () -> the state before the first update, where a run without a good checkpoint begins again.
    looks: pairs (every so many steps, (state, step) -> None).
  """
  config: ml_collections.FrozenConfigDict
  workdir: Path
  checkpoints: Checkpoints | None
  layout: Layout
  fixed: tuple
  new: Callable[[], TrainState]
  looks: list[tuple[int, jobs.LookFn | None]] = dataclasses.field(default_factory=list)

  def steps(self, step_at: Callable[[int], Callable], state: TrainState) -> TrainState:
    """Steps until done or stopped. `step_at` gives the executable for the step of a number.

    Nothing is fetched from the device but the metrics, every `log_every` steps, and what the looks ask for.
    """
    t = self.config.training
    done, pending = int(self.layout.fetch(state.step)), []
    with _stop_requests() as stop, Journal(self.workdir, done, t.steps, hosts.is_first()) as journal:
      while done < t.steps:
        with jax.transfer_guard("disallow"):
          state, metrics = step_at(done)(state, *self.fixed)
        done += 1
        pending.append(metrics)
        journal.tick()
        if done % t.log_every == 0 or done == t.steps:
          fetched, pending = self.layout.fetch(pending), []
          journal.log(done, fetched)
          if np.any(divergence.out_of_patience(self.config, fetched)):
            state, done = self._go_back(state, done)
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
    return done % self.config.training.log_every == 0 and hosts.any_of(bool(stop))

  def _look(self, state: TrainState, done: int) -> None:
    for every, look in self.looks:
      if every and look and done % every == 0 and done < self.config.training.steps and hosts.is_first():
        look(self.layout.local(state), done)

  def _save(self, state: TrainState, done: int) -> None:
    if self.checkpoints is None:
      return
    state = self.layout.local(state)
    about = dict(config=self.config.to_dict(), versions=outputs.versions(), in_a_row=int(state.health["in_a_row"]))
    self.checkpoints.save(done, state, about)

  def _go_back(self, state: TrainState, done: int) -> tuple[TrainState, int]:
    """(state, step) of the last good checkpoint, or of the beginning, to be tried again in another way.

    Raises:
      Diverged: that was done often enough.
    """
    health = self.layout.fetch(state.health)
    restarts = int(health["restarts"]) + 1
    if restarts > self.config.divergence.restarts:
      raise divergence.gave_up(self.config, done, f"the last good state lies in {self.workdir / 'checkpoints'}")
    good, problem = self.new(), None
    if self.checkpoints is not None:
      try:
        if found := self.checkpoints.newest(good, resume.is_good):
          good = found[1]
        self.checkpoints.drop_after(int(good.step))
      except (ValueError, OSError) as error:
        problem = error
    hosts.all_well(problem)
    good = divergence.restarted(hosts.from_first(good), restarts, int(health["dropped"]))
    step = int(good.step)
    if self.checkpoints is not None:
      print(f"\n{self.config.divergence.patience} updates in a row were not finite: back from step {done} to {step}, "
            f"restart {restarts} of {self.config.divergence.restarts}, with "
            f"{self.config.divergence.learning_rate_factor**restarts:g} times the learning rate")
    return self.layout.put(good), step


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
