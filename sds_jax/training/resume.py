"""Where a run begins: anew, from its newest whole checkpoint, or from another run that it edits."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import ConfigDict

from sds_jax.io import files
from sds_jax.io.checkpoints import Checkpoints, DamagedCheckpointError, SchemaError
from sds_jax.training import workspace
from sds_jax.training.jobs import Job
from sds_jax.training.state import TrainState
from sds_jax.training.workspace import ResumeError

def first_state(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints,
                like: TrainState, new: Callable[[], TrainState], job: Job) -> TrainState:
  """The newest whole checkpoint, of the structure of `like`, where one is wanted; else new(). Makes the logs agree.

  Raises:
    ResumeError: `config.resume` asks for a checkpoint that is not there, or the one that is there does not fit.
  """
  if config.resume == "never":
    checkpoints.clear()
  there = checkpoints.latest_step() is not None
  if there:
    check_same_object(config, workdir, checkpoints)
    job.check(workdir)
  found = newest(checkpoints, like, workdir) if there else None
  if found is None:
    if config.resume == "must":
      raise ResumeError(f"config.resume='must', but {workdir / 'checkpoints'} holds no {'whole ' * there}checkpoint; "
                        "use --config.resume=auto to start anew where there is none")
    if there:
      print(f"none of the checkpoints in {workdir} is whole: starting anew")
    state = new()  # before anything of the run that was there goes
    _truncate(workdir, job, 0)
    for pattern in ("events.out.tfevents.*", "progress/*.png", "*/progress/*.png"):
      for old in workdir.glob(pattern):
        old.unlink()
    return state
  step, state = found
  _truncate(workdir, job, step)
  print(f"going on from step {step} of {workdir}")
  return state


def _truncate(workdir: Path, job: Job, step: int) -> None:
  for folder in [workdir / name for name in job.scenes.folders] if job.scenes else [workdir]:
    files.truncate_metrics(folder / "metrics.jsonl", step)


def newest(checkpoints: Checkpoints, like: TrainState, workdir: Path,
           whatever_estimator: bool = False) -> tuple[int, TrainState] | None:
  """(step, state) of the newest checkpoint that is whole, of the structure of `like`; None where there is none.

  Args:
    whatever_estimator: whether to take what the estimator keeps as it is there.

  Raises:
    ResumeError: it holds something else.
  """
  def of(there: dict[str, Any]) -> TrainState:
    return dataclasses.replace(like, estimator=there.get("estimator")) if whatever_estimator else like

  try:
    return checkpoints.restore_newest(of)
  except SchemaError as error:
    raise ResumeError(f"the newest checkpoint in {workdir} does not fit these settings ({str(error).splitlines()[0]}); "
                      "use --config.resume=never or another --workdir") from error


def source_of(config: ml_collections.FrozenConfigDict, job: Job) -> TrainState | None:
  """What another run has made and this one edits, or None.

  Raises:
    ResumeError: that run has no checkpoint, or its field (or generator) is another one.
  """
  if not config.distillation.source:
    return None
  folder, named = Path(config.distillation.source), f"config.distillation.source={config.distillation.source!r}"
  new = jax.eval_shape(lambda: job.new_state(jax.random.key(0)))

  def of(there: dict[str, Any]) -> TrainState:  # what only that run has a use for is restored as it is there
    return dataclasses.replace(new, estimator=there.get("estimator"), opt_state=there["opt_state"])

  with Checkpoints(folder / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    try:
      found = checkpoints.restore_newest(of)
    except (SchemaError, KeyError) as error:
      raise ResumeError(f"{named} cannot be edited with these settings, its field or generator, grid and particles "
                        f"must be the same: {str(error).splitlines()[0]}") from error
  if found is None:
    raise ResumeError(f"{named} has no checkpoint to begin from")
  print(f"beginning from step {found[0]} of {folder}: {config.distillation.source_prompt!r}")
  return jax.tree.map(jnp.asarray, found[1])


def check_same_object(config: ml_collections.FrozenConfigDict, workdir: Path, checkpoints: Checkpoints) -> None:
  """Raise ResumeError where the checkpoints in `workdir` are of another prompt or seed; tell what else has changed."""
  before = ConfigDict()
  if (workdir / "config.json").is_file():
    before = workspace.stored_config(workdir, {})
  else:  # someone has deleted it; the checkpoint knows, too
    with contextlib.suppress(DamagedCheckpointError):
      before = ConfigDict(checkpoints.metadata(checkpoints.latest_step()).get("config", {}))
  if not before:
    return
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
