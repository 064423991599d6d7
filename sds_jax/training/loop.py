"""The loop of a run: compile once, step until done, log, save.

All other parts of a run are pure functions elsewhere.
"""
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
import numpy as np

from sds_jax import hosts, schema
from sds_jax.io import run_files
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.priors.prior import Prior
from sds_jax.prng import seeded_key
from sds_jax.training import divergence, resume, stages as stages_lib, workspace
from sds_jax.settings.training import TrainingSettings
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.program import LookFn, Program
from sds_jax.training.recovery import Recovery
from sds_jax.training.run_log import RunLog
from sds_jax.training.state import TrainState
from sds_jax.training.versions import versions
from sds_jax.types import Params


class Interrupted(Exception):
  """Raised after Ctrl-C or SIGTERM, once the state has been saved.

  The message names the step.
  """


@dataclasses.dataclass
class RunResult:
  """The result of a run.

  Attributes:
    state: after the last update.
    timings: seconds by part of the run.
    started: when the run began, by `time.perf_counter`.
    given_up: numbers of the scenes that have diverged, in a run of many.
  """
  state: TrainState
  timings: dict[str, float]
  started: float
  given_up: tuple[int, ...] = ()


def train(settings: Any, workdir: Path, prior: Prior, prior_params: Params, program: Program, layout: DeviceLayout,
          on_render: LookFn | None = None) -> RunResult:
  """Runs a program to its last step.

  Args:
    settings: the validated tree of any task.
    workdir: exists and can be written to; gets `checkpoints/`, `config.json`, `metrics.jsonl`, TensorBoard's
      `events.*` and, every `training.guidance_every` steps, `progress/guidance_*.png`.
    prior: for the record of where its files come from.
    prior_params: on the devices (`DeviceLayout.put_prior`); not donated.
    program: the run.
    layout: the devices.
    on_render: called with (state, step) every `training.render_every` steps; must not keep the state.

  Raises:
    ResumeError: `config.resume` demands a checkpoint and there is none, or the checkpoint does not fit.
    Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    Diverged: updates stay non-finite.
  """
  began = time.perf_counter()
  key, conditions = seeded_key(settings.seed), program.embed()
  begin = functools.partial(
      # Shapes of the prior suffice: a new state reads no values of its parameters.
      jax.jit(lambda key, source: program.begin(layout.shapes(prior_params), conditions, key, source)),
      # No step folds in this number, so the first state draws from a stream of its own.
      jax.random.fold_in(key, 2**31 - 1))
  with _checkpoints(settings.training, workdir) as checkpoints:
    new = lambda: begin(resume.restore_source(settings.distillation, program))  # noqa: E731
    # Shapes alone, since a run that goes on needs no new state.
    like = jax.eval_shape(begin, None)
    state = layout.put_state(_first_state(settings, workdir, checkpoints, like, new, prior, program))
    # Arguments of the step, because constants of gigabytes would be compiled into the program.
    fixed = (prior_params, layout.put_conditions(conditions), layout.put(key))
    recovery = Recovery(settings.divergence, workdir, checkpoints, layout, like, new, program.scenes)
    step_fns, compile_seconds = hosts.run_on_all(lambda: _compile(program, layout, state, fixed))
    # Runs of images have no guidance sheets, nor the setting.
    sheets_every = getattr(settings.training, "guidance_every", 0)
    with _sheets(sheets_every, workdir, program, layout, state, fixed) as on_guidance:
      started = time.perf_counter()
      run = _Run(settings, workdir, layout, fixed, _folders(workdir, program), recovery, looks=[
          (settings.training.render_every, on_render), (sheets_every, on_guidance)])
      state = run.steps(functools.partial(stages_lib.at_step, program.stages, step_fns), state)
    timings = dict(compile_s=compile_seconds, optimise_s=time.perf_counter() - started)
    given_up = recovery.given_up(layout.fetch(state.health), int(layout.fetch(state.step)))
    return RunResult(layout.local(state), timings, began, given_up)


def _sheets(every: int, workdir: Path, program: Program, layout: DeviceLayout, state: TrainState,
            fixed: tuple) -> contextlib.AbstractContextManager[LookFn | None]:
  """Returns the context of the guidance sheets.

  One process makes the sheets, on one of its devices.
  """
  if not every or not hosts.is_first():
    return contextlib.nullcontext()
  return program.sheets(workdir, layout.local(state), layout.local(fixed))


def _folders(workdir: Path, program: Program) -> list[Path]:
  return [workdir / name for name in program.scenes.folders] if program.scenes else [workdir]


@contextlib.contextmanager
def _checkpoints(training: TrainingSettings, workdir: Path) -> Iterator[Checkpoints | None]:
  """Yields the run's checkpoints in the process that writes; None in the other processes."""
  if not hosts.is_first():
    yield None
    return
  with run_files.recording(workdir), Checkpoints(
      workdir / "checkpoints", training.keep_checkpoints, training.keep_period) as checkpoints:
    yield checkpoints


def _first_state(settings: Any, workdir: Path, checkpoints: Checkpoints | None, like: TrainState,
                 new: Callable[[], TrainState], prior: Prior, program: Program) -> TrainState:
  """Returns process 0's first state in all processes.

  Process 0 makes the folder agree with the state.
  """
  def restore() -> TrainState:
    state = resume.first_state(settings, workdir, checkpoints, like, new, program)
    # Only now: if the settings do not fit the checkpoints, config.json keeps the settings that made them.
    workspace.store_settings(workdir, schema.to_dict(settings), versions(), prior.source.as_dict())
    program.keep_inputs(workdir)
    if int(state.step) < settings.training.steps:
      for folder in _folders(workdir, program):
        for old in (folder / "scores.json", *folder.glob("particle_*/scores.json")):
          run_files.delete(old)  # of the objects before this run
    return state

  return hosts.broadcast_result(like, restore)


def _compile(program: Program, layout: DeviceLayout, state: TrainState,
             fixed: tuple) -> tuple[list[Callable | None], float]:
  """Compiles each stage's step, with the state donated.

  Returns the executables and the seconds of compilation.

  The executable of a stage that is over is None. Everything is compiled before the first step, so that a program that
  does not fit into the device's memory fails at once.
  """
  compiled, started = [], time.perf_counter()
  stages = program.stages
  for stage, over in zip(stages, stages_lib.are_over(stages, int(layout.fetch(state.step)))):
    if over:
      compiled.append(None)
      continue
    before = time.perf_counter()
    print(f"compiling the step{f' at {stage}' if len(stages) > 1 else ''}{layout} ... ", end="", flush=True)
    compiled.append(layout.compile(program.make_step(stage, layout.share), state, fixed))
    print(f"{time.perf_counter() - before:.1f} s")
  return compiled, time.perf_counter() - started


@dataclasses.dataclass
class _Run:
  """The steps of a run and the work between them.

  Attributes:
    settings: the tree of any task.
    workdir: folder of the run.
    layout: devices of the run.
    fixed: arguments of every step besides the state.
    folders: folders of the metrics of each scene, or of the one object.
    recovery: takes the run back; holds the checkpoints.
    looks: pairs (number of steps between two calls, (state, step) -> None).
  """
  settings: Any
  workdir: Path
  layout: DeviceLayout
  fixed: tuple
  folders: list[Path]
  recovery: Recovery
  looks: list[tuple[int, LookFn | None]]

  def steps(self, step_at: Callable[[int], Callable], state: TrainState) -> TrainState:
    """Steps until done or stopped.

    Only the metrics, every `log_every` steps, and the arrays of the looks are fetched from the device.

    Args:
      step_at: (number of a step) -> its executable.
      state: to begin with; donated.
    """
    t = self.settings.training
    done, pending = int(self.layout.fetch(state.step)), []
    with _stop_requests() as stop, RunLog(self.workdir, self.folders, done, t.steps) as log:
      while done < t.steps:
        # Implicit transfers raise: one in a step would make host and device wait for each other at every step.
        with jax.transfer_guard("disallow"):
          state, metrics = step_at(done)(state, *self.fixed)
        # The last checkpoint is written to its end while the device works on this step, so that a kill costs no more
        # than the steps since the checkpoint before it.
        if self.recovery.checkpoints is not None:
          self.recovery.checkpoints.wait()
        done += 1
        # Left on the device: to fetch them here would wait for the step.
        pending.append(metrics)
        log.tick()
        if done % t.log_every == 0 or done == t.steps:
          fetched, pending = self.layout.fetch(pending), []
          log.log(done, fetched)
          bad = divergence.out_of_patience(self.settings.divergence.patience, fetched)
          if np.any(bad):
            before = done
            state, done = self.recovery.go_back(state, done, bad)
            # A scene goes back alone, at the step of all the others, and the log stays.
            if done < before:
              log.go_back(done)
              continue
        self._look(state, done)
        stopped = self._stopped(stop, done)
        if done % t.checkpoint_every == 0 or done == t.steps or stopped:
          self._save(state, done)
        if stopped and done < t.steps:
          raise Interrupted(f"stopped at step {done} of {t.steps}; saved in {self.workdir / 'checkpoints'}; "
                            "the same command continues from there")
      log.close(self.layout.fetch(state.health))
    return state

  def _stopped(self, stop: list[int], done: int) -> bool:
    """Returns whether to stop after this step.

    Several processes agree every `log_every` steps.
    """
    if jax.process_count() == 1:
      return bool(stop)
    return done % self.settings.training.log_every == 0 and hosts.any_process(bool(stop))

  def _look(self, state: TrainState, done: int) -> None:
    due = [look for every, look in self.looks
           if every and look and done % every == 0 and done < self.settings.training.steps]
    if not due:
      return
    local_state = self.layout.local(state)  # in every process: the fetch may be collective
    for look in due if hosts.is_first() else ():
      look(local_state, done)

  def _save(self, state: TrainState, done: int) -> None:
    # In every process, because the fetch may be collective.
    state = self.layout.local(state)
    if self.recovery.checkpoints is None:
      return
    metadata = dict(config=schema.to_dict(self.settings), versions=versions(),
                    key=jax.random.key_data(seeded_key(self.settings.seed)).tolist(),
                    **self.recovery.metadata(jax.device_get(state.health)))
    self.recovery.checkpoints.save(done, state, metadata)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Yields a list that is empty until Ctrl-C or SIGTERM.

  A second Ctrl-C interrupts at once, without saving.
  """
  received: list[int] = []

  def note(number: int, frame: Any) -> None:
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    # Only noted: the step under way is finished and the state saved.
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
