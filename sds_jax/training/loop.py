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
import tensorboardX
import tqdm

from sds_jax import compilation
from sds_jax.io import files
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.priors.prior import Prior
from sds_jax.training import jobs, outputs, stages as stages_lib, workspace
from sds_jax.training.jobs import Job
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class ResumeError(ValueError):
  """The working folder does not hold what the settings ask to go on from."""


class Interrupted(Exception):
  """The run was asked to stop (Ctrl-C or SIGTERM) and has saved itself; the message says at which step."""


@dataclasses.dataclass
class Progress:
  """What a run tells its caller: the state it ended with, how long things took in seconds, and when it began."""
  state: TrainState
  timings: dict[str, float]
  started: float


def train(config: ml_collections.FrozenConfigDict, workdir: Path, prior: Prior, prior_params: Params,
          on_render: jobs.LookFn | None = None, job: Job | None = None) -> Progress:
  """Optimise one object, or what else `job` says.

  Args:
    config: validated.
    workdir: exists and can be written to; gets `checkpoints/`, `config.json`, `metrics.jsonl`, TensorBoard's
      `events.*` and, every `training.guidance_every` steps, `progress/guidance_*.png`.
    prior, prior_params: of `priors.build`; the parameters are left as they are.
    on_render: called with (state, step) every `training.render_every` steps; must not keep the state.
    job: what the steps are; None: text-to-3D.

  Raises:
    ResumeError: `config.resume` asks for a checkpoint that is not there, or the one that is there does not fit.
    Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
  """
  began = time.perf_counter()
  job = job or jobs.text3d(config, prior)
  key = jax.random.key(config.seed)
  text = job.text()
  begin = jax.jit(lambda key, source: job.begin(prior_params, text, key, source))
  with Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    if config.resume == "never":
      checkpoints.clear()
    source = None if checkpoints.latest() else _source(config, job)
    state = _resume(config, workdir, checkpoints, begin(jax.random.fold_in(key, 2**31 - 1), source))
    # Only now: where the settings do not fit what is there, config.json still tells those that made it.
    workspace.store_config(workdir, config, outputs.versions(), prior.source.as_dict())
    fixed = (prior_params, text, key)
    step_fns, compile_seconds = _compile(job, state, fixed)
    if int(state.step) < config.training.steps:
      for old in (workdir / "scores.json", *workdir.glob("particle_*/scores.json")):
        old.unlink(missing_ok=True)  # of the objects before this run
    with job.sheets(workdir, state, fixed) as on_guidance:
      started = time.perf_counter()
      looks = [(config.training.render_every, on_render), (config.training.get("guidance_every", 0), on_guidance)]
      step_at = functools.partial(stages_lib.at_step, job.stages, step_fns)
      state = _loop(config, workdir, checkpoints, step_at, state, fixed, looks)
    timings = dict(compile_s=compile_seconds, optimise_s=time.perf_counter() - started)
  return Progress(state, timings, began)


def _resume(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints,
            state: TrainState) -> TrainState:
  """The newest checkpoint, where it is wanted; else `state` as it is."""
  latest = checkpoints.latest()
  if latest is None:
    if config.resume == "must":
      raise ResumeError(f"config.resume='must', but {workdir / 'checkpoints'} holds no checkpoint; "
                        "use --config.resume=auto to start anew where there is none")
    files.truncate_metrics(workdir / "metrics.jsonl", 0)
    for old in (*workdir.glob("events.out.tfevents.*"), *workdir.glob("progress/*.png")):
      old.unlink()
    return state
  _check_same_object(config, workdir)
  state = restore(checkpoints, latest, state, workdir)
  files.truncate_metrics(workdir / "metrics.jsonl", latest)
  print(f"going on from step {latest} of {workdir}")
  return state


def _source(config: ml_collections.FrozenConfigDict, job: Job) -> TrainState | None:
  """What another run has made and this one edits, or None.

  Raises:
    ResumeError: that run has no checkpoint, or its field (or generator) is another one.
  """
  if not config.distillation.source:
    return None
  folder = Path(config.distillation.source)
  if not (folder / "checkpoints").is_dir():  # opening it would make it
    raise ResumeError(f"config.distillation.source={config.distillation.source!r} has no checkpoint to begin from")
  like = jax.eval_shape(lambda: job.new_state(jax.random.key(0)))
  with Checkpoints(folder / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    latest = checkpoints.latest()
    if latest is None:
      raise ResumeError(f"config.distillation.source={config.distillation.source!r} has no checkpoint to begin from")
    there = checkpoints.like(latest)
    try:
      # What only that run has a use for is restored as it is there.
      like = dataclasses.replace(like, estimator=there.get("estimator"), opt_state=there["opt_state"])
      made = checkpoints.restore(latest, like)
    except (ValueError, KeyError) as error:
      raise ResumeError(f"config.distillation.source={config.distillation.source!r} cannot be edited with these "
                        "settings, its field or generator, grid and particles must be the same: "
                        f"{str(error).splitlines()[0]}") from error
    print(f"beginning from step {latest} of {folder}: {config.distillation.source_prompt!r}")
    return made


def _check_same_object(config: ml_collections.FrozenConfigDict, workdir: Path) -> None:
  """Raise ResumeError where the checkpoints in `workdir` are of another prompt or seed; tell what else has changed."""
  if not (workdir / "config.json").is_file():
    return
  before = workspace.stored_config(workdir, {})
  for name in ("prompt", "seed"):
    if before[name] != config[name]:
      raise ResumeError(f"config.{name}={config[name]!r}, but the checkpoints in {workdir} were made with "
                        f"{before[name]!r}; give another --workdir, or use --config.resume=never to start anew there")
  old, new = _flat(before.to_dict()), _flat(config.to_dict())
  changed = [f"{name}={new.get(name)!r} (was {old.get(name)!r})" for name in sorted(old.keys() | new.keys())
             if old.get(name) != new.get(name) and name not in ("workdir", "resume")]
  if changed:
    print(f"from here on with other settings than before: {', '.join(changed)}")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested settings as {dotted name: value}."""
  flat = {}
  for name, value in settings.items():
    flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return flat


def restore(checkpoints: Checkpoints, step: int, like: TrainState, workdir: Path) -> TrainState:
  """The checkpoint of `step`, of the structure of `like`.

  Raises:
    ResumeError: it holds something else.
  """
  try:
    return checkpoints.restore(step, like)
  except (ValueError, KeyError) as error:
    raise ResumeError(f"the checkpoint of step {step} in {workdir} does not fit these settings "
                      f"({str(error).splitlines()[0]}); use --config.resume=never or another --workdir") from error


def _compile(job: Job, state: TrainState, fixed: tuple) -> tuple[list[Callable | None], float]:
  """Each stage's step as one executable that takes over the state's memory (None: behind us), and the seconds it took.

  All before the first step: what does not fit into the device's memory shows at once.
  """
  compiled, started = [], time.perf_counter()
  for stage, over in zip(job.stages, stages_lib.are_over(job.stages, int(state.step))):
    if over:
      compiled.append(None)
      continue
    before = time.perf_counter()
    print(f"compiling the step{f' at {stage}' if len(job.stages) > 1 else ''} ... ", end="", flush=True)
    step = jax.jit(job.make_step(stage), donate_argnums=0,
                   compiler_options=compilation.unet_options())
    compiled.append(step.lower(state, *fixed).compile())
    print(f"{time.perf_counter() - before:.1f} s")
  return compiled, time.perf_counter() - started


def _loop(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints,
          step_at: Callable[[int], Callable], state: TrainState, fixed: tuple,
          looks: list[tuple[int, Callable | None]]) -> TrainState:
  """Steps until done or stopped, with a look (state, step) every so many steps, for each (every, look) of `looks`.

  `step_at` gives the executable for the step of a number.
  Nothing is fetched from the device but the metrics, every `log_every` steps, and what the looks ask for.
  """
  t = config.training
  first, pending = int(state.step), []
  started = time.perf_counter()
  with _stop_requests() as stop, tensorboardX.SummaryWriter(str(workdir), purge_step=first + 1) as board, tqdm.trange(
      first, t.steps, initial=first, total=t.steps, desc="optimising", unit="step", mininterval=0.5) as bar:
    for done in range(first + 1, t.steps + 1):
      with jax.transfer_guard("disallow"):
        state, metrics = step_at(done - 1)(state, *fixed)
      pending.append(metrics)
      bar.update()
      if done % t.log_every == 0 or done == t.steps:
        means = _means(pending)
        pending = []
        means["steps_per_second"] = (done - first) / (time.perf_counter() - started)
        _log(workdir, board, bar, done, means)
      for every, look in looks:
        if every and look and done % every == 0 and done < t.steps:
          look(state, done)
      if done % t.checkpoint_every == 0 or done == t.steps or stop:
        checkpoints.save(done, state)
      if stop and done < t.steps:
        raise Interrupted(f"stopped at step {done} of {t.steps}; saved in {workdir / 'checkpoints'}; "
                          "the same command goes on from there")
  return state


def _means(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
  fetched = jax.device_get(pending)
  return {name: float(np.mean([metrics[name] for metrics in fetched])) for name in fetched[0]}


def _log(workdir: Path, board: tensorboardX.SummaryWriter, bar: tqdm.tqdm, step: int, means: dict[str, float]) -> None:
  files.append_metrics(workdir / "metrics.jsonl", step, means)
  for name, value in means.items():
    board.add_scalar(name, value, step)
  opacity = dict(opacity=f"{means['mean_opacity']:.2f}") if "mean_opacity" in means else {}
  bar.set_postfix(grad=f"{means['sds_grad_norm']:.3g}", **opacity)


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
