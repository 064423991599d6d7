"""The first state of a run.

The state is a new one, that of the newest whole checkpoint, or that of the run that is edited.
"""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.io import files, run_files
from sds_jax.io.checkpoints import Checkpoints, DamagedCheckpointError, SchemaError
from sds_jax import schema
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import workspace
from sds_jax.training.program import Program, abstract_state
from sds_jax.training.state import TrainState
from sds_jax.training.workspace import ResumeError


def first_state(settings: Any, workdir: Path, checkpoints: Checkpoints, like: TrainState,
                new: Callable[[], TrainState], program: Program) -> TrainState:
  """Returns the state of the newest whole checkpoint, or new().

  The logs are cut to the same step.

  Args:
    settings: the tree of any task; `resume` says whether a checkpoint may or must be used.
    workdir: folder of the run.
    checkpoints: of the run.
    like: structure and shapes of a state.
    new: () -> the state before the first update.
    program: the run; its inputs are checked against those of the checkpoints.

  Raises:
    ResumeError: `config.resume` demands a checkpoint and there is none, or the checkpoint does not fit.
  """
  if settings.resume == "never":
    checkpoints.clear()
  exists = checkpoints.latest_step() is not None
  if exists:
    check_same_object(settings, workdir, checkpoints)
    program.check_inputs(workdir)
  newest = restore_newest(checkpoints, like, workdir) if exists else None
  if newest is None:
    if settings.resume == "must":
      raise ResumeError(f"config.resume='must', but {workdir / 'checkpoints'} holds no {'whole ' * exists}checkpoint; "
                        "use --config.resume=auto to start anew without one")
    if exists:
      print(f"none of the checkpoints in {workdir} is whole: starting anew")
    state = new()  # first, so that files of the earlier run are kept if this fails
    _truncate(workdir, program, 0)
    for folder in (workdir, *_folders(workdir, program)):
      for old in (*folder.glob("events.out.tfevents.*"), *folder.glob("progress/*.png")):
        run_files.delete(old)
    return state
  step, state = newest
  _truncate(workdir, program, step)
  print(f"going on from step {step} of {workdir}")
  return state


def _truncate(workdir: Path, program: Program, step: int) -> None:
  for folder in _folders(workdir, program):
    files.truncate_metrics(folder / "metrics.jsonl", step)


def _folders(workdir: Path, program: Program) -> list[Path]:
  return [workdir / name for name in program.scenes.folders] if program.scenes else [workdir]


def restore_newest(checkpoints: Checkpoints, like: TrainState, workdir: Path,
                   any_estimator: bool = False) -> tuple[int, TrainState] | None:
  """Returns (step, state) of the newest whole checkpoint, or None if there is none.

  Args:
    checkpoints: of the run in `workdir`.
    like: structure and shapes of the state.
    workdir: folder of the run, for errors.
    any_estimator: whether the estimator's part may have any structure.

  Raises:
    ResumeError: the checkpoint has another structure.
  """
  def expected(stored: dict[str, Any]) -> TrainState:
    return dataclasses.replace(like, estimator=stored.get("estimator")) if any_estimator else like

  try:
    return checkpoints.restore_newest(expected)
  except SchemaError as error:
    raise ResumeError(f"the newest checkpoint in {workdir} does not fit these settings ({str(error).splitlines()[0]}); "
                      "use --config.resume=never or another --workdir") from error


def restore_source(distillation: DistillationSettings, program: Program, keep: int = 2) -> TrainState | None:
  """Returns the newest state of the run that this run edits, or None.

  Args:
    distillation: names the folder of the edited run.
    program: this run, whose parameters must have the same structure.
    keep: number of checkpoints that the edited run keeps.

  Raises:
    ResumeError: the edited run has no checkpoint, or its parameters have another structure.
  """
  if not distillation.source:
    return None
  folder, named = Path(distillation.source), f"config.distillation.source={distillation.source!r}"
  new = abstract_state(program)

  def expected(stored: dict[str, Any]) -> TrainState:  # the parts that only the edited run uses keep their structure
    return dataclasses.replace(new, estimator=stored.get("estimator"), opt_state=stored["opt_state"])

  with Checkpoints(folder / "checkpoints", keep, read_only=True) as checkpoints:
    try:
      newest = checkpoints.restore_newest(expected)
    except (SchemaError, KeyError) as error:
      raise ResumeError(f"{named} cannot be edited with these settings, its field or generator, grid and particles "
                        f"must be the same: {str(error).splitlines()[0]}") from error
  if newest is None:
    raise ResumeError(f"{named} has no checkpoint to begin from")
  print(f"beginning from step {newest[0]} of {folder}: {distillation.source_prompt!r}")
  return jax.tree.map(jnp.asarray, newest[1])


def check_same_object(settings: Any, workdir: Path, checkpoints: Checkpoints) -> None:
  """Raises ResumeError if the checkpoints have another prompt or seed.

  The other changed settings are printed.
  """
  before = {}
  if (workdir / "config.json").is_file():
    before = workspace.stored_settings(workdir)
  else:  # deleted by the user; the checkpoint has the settings, too
    with contextlib.suppress(DamagedCheckpointError):
      if stored := checkpoints.metadata(checkpoints.latest_step()).get("config"):
        before = workspace.settings_of_checkpoint(stored, workdir)
  if not before:
    return
  # The seed, too: it is the key of all draws, and another seed would go on with another run.
  for name in ("prompt", "seed"):
    value = getattr(settings, name)
    if before.get(name) != value:
      raise ResumeError(f"config.{name}={value!r}, but the checkpoints in {workdir} were made with "
                        f"{before.get(name)!r}; give another --workdir, or use --config.resume=never to start anew "
                        "there")
  old, new = _flat(before), _flat(schema.to_dict(settings))
  changed = [f"{name}={new.get(name)!r} (was {old.get(name)!r})" for name in sorted(old.keys() | new.keys())
             if old.get(name) != new.get(name) and name not in ("workdir", "resume")]
  if changed:
    print(f"from here on with other settings than before: {', '.join(changed)}")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested settings as {dotted name: value}.

  Tuples become lists, as in JSON.
  """
  flat = {}
  for name, value in settings.items():
    flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: _lists(value)}
  return flat


def _lists(value: Any) -> Any:
  return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
