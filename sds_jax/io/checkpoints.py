"""Checkpoints of a run: orbax writes them, whole or not at all; what is read is what was written, or an error tells."""
from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sds_jax.io import orbax_files, records
from sds_jax.io.records import DamagedCheckpointError, SchemaError

__all__ = ["Checkpoints", "DamagedCheckpointError", "SchemaError"]

STATE, RECORD, RECORD_FILE = "state", "record", "record.json"
"""In the folder of a step: orbax's folder of the arrays, and the folder and file of the record."""


class Checkpoints:
  """A folder of checkpoints, `<folder>/<step>/`. Use as a context manager: leaving it waits for pending writes.

  One process uses it; other processes of a `jax.distributed` job need not know of it. All methods wait for a write that
  is under way, and raise its OSError where it has failed.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2, keep_period: int = 0):
    """The folder is made by the first save.

    Args:
      keep: how many of the newest stay.
      keep_period: the steps that are multiples of it stay for good; 0: none.
    """
    self._folder, self._keep, self._period = Path(folder).absolute(), keep, keep_period
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending: concurrent.futures.Future | None = None
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: Any) -> None:
    try:
      self.wait()
    finally:
      self._forget()
      self._thread.shutdown()

  def steps(self) -> list[int]:
    """The steps that were written whole (damage is found by reading only), ascending."""
    self.wait()
    return self._steps()

  def latest_step(self) -> int | None:
    """The newest of `steps`, or None."""
    return max(self.steps(), default=None)

  def clear(self) -> None:
    """Delete all of them: a run that starts anew must not be taken for the old one, whose last step may be later."""
    self.delete_after(-1)

  def delete_after(self, step: int) -> None:
    """Delete those of later steps."""
    late = [other for other in self.steps() if other > step]
    for other in reversed(late):
      self._remove(other)
    self._forget()

  def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
    """Copy `state` to the host, and write it in the background; a step that is there already is left alone.

    Args:
      state: a pytree of arrays, numpy's or fully addressable ones of JAX; typed keys are arrays too.
      about: JSON; comes back from `about(step)`.

    Raises:
      OSError: the one that was written in the background before could not be (a full disk, say); leaving the context
        raises it too.
      ValueError, TypeError: the state is not of arrays, or `about` is not JSON.
    """
    if step in self.steps():
      return
    for leaf in jax.tree.leaves(state):
      if isinstance(leaf, jax.Array) and not records.is_key(leaf):
        leaf.copy_to_host_async()
    leaves = {name: (records.describe(leaf, path), records.on_host(leaf))
              for name, (path, leaf) in records.flatten(state).items()}
    json.dumps(about)  # what is not JSON shows here, not in the background
    self._pending = self._thread.submit(self._write, step, leaves, about)

  def metadata(self, step: int) -> dict[str, Any]:
    """What `save` was told, as JSON gives it back.

    Raises:
      FileNotFoundError, DamagedCheckpointError, SchemaError: see `restore`.
    """
    return self._record(step)["about"]

  def abstract_state(self, step: int) -> dict[str, Any]:
    """What the checkpoint is made of: nested dictionaries (of any container) of `jax.ShapeDtypeStruct`, on the first
    device. Raises as `restore`."""
    return records.nest({tuple(said["path"]): records.abstract(said) for said in self._record(step)["leaves"].values()})

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`, every bit as it was saved.

    Args:
      like: gives structure, shapes, dtypes and sharding; arrays or `jax.ShapeDtypeStruct` (without a sharding: on the
        default device). Any number of devices will do, whatever the state was saved from; numpy's arrays stay numpy's.

    Raises:
      FileNotFoundError: there is no such step.
      DamagedCheckpointError: files are missing, cut, changed or unreadable.
      SchemaError: it is whole, but of another structure, shape or dtype, or of another SCHEMA.
    """
    record, wanted = self._record(step), records.flatten(like)
    records.compare(record, wanted)
    arrays, placed = self._arrays(step, record), []
    for name, (_, leaf) in wanted.items():
      said = record["leaves"][name]
      records.check(name, arrays[name], said)
      placed.append(records.place(arrays[name], said, leaf))
    return jax.tree.unflatten(jax.tree.structure(like), placed)

  def restore_newest(self, like: Any,
                     accept: Callable[[dict[str, Any]], bool] = lambda about: True) -> tuple[int, Any] | None:
    """(step, state) of the newest one that is whole and whose `about` is accepted, or None.

    Damaged ones on the way are moved to `<folder>/damaged/`, and a line on stderr says so.

    Args:
      like: of `restore`; or a function that makes it of what `self.abstract_state(step)` gives.

    Raises:
      SchemaError: one is whole and accepted, but does not fit `like`, or has another SCHEMA.
    """
    made = callable(like) and jax.tree_util.all_leaves([like])  # a state that can be called has leaves of its own
    for step in reversed(self.steps()):
      try:
        if accept(self.metadata(step)):
          return step, self.restore(step, like(self.abstract_state(step)) if made else like)
      except DamagedCheckpointError as error:
        self._set_aside(step, error)
    return None

  def _steps(self) -> list[int]:
    # Read from the disk each time, not from orbax's memory of it: orbax passes over what it cannot make sense of.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      return sorted(int(path.name) for path in self._folder.iterdir()
                    if path.name.isascii() and path.name.isdigit() and path.is_dir())
    return []

  def wait(self) -> None:
    """Until what is being written is whole; returns at once where nothing is.

    Raises:
      OSError: it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def _write(self, step: int, leaves: dict[str, tuple[dict, np.ndarray]], about: dict[str, Any]) -> None:
    """In the thread: digests, files, then the deletion of what need not stay."""
    told = {name: dict(said, sha256=records.digest(array)) for name, (said, array) in leaves.items()}
    # Arrays of no elements have no bytes that orbax could write; the record tells all of them.
    full = {tuple(said["path"]): array for said, array in leaves.values() if array.size}
    items = {RECORD: ocp.args.JsonSave(records.seal(step, told, about))}
    if full:
      items[STATE] = ocp.args.PyTreeSave(records.nest(full))
    with self._writing():
      self._open().save(step, args=ocp.args.Composite(**items), force=True)
      for old in _superseded(self._steps(), self._keep, self._period):
        self._remove(old)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what orbax and tensorstore raise into an OSError with the system's own reason."""
    try:
      yield
    except (ValueError, RuntimeError, OSError) as error:
      for left in self._folder.glob("*.orbax-checkpoint-tmp"):  # a full disk needs the room
        shutil.rmtree(left, ignore_errors=True)
      reason = str(error).split(" [os_error_code")[0].rsplit(": ", 1)[-1].splitlines()[0]
      raise OSError(f"a checkpoint could not be written to {self._folder}: {reason}") from error

  def _open(self) -> ocp.CheckpointManager:
    """Orbax's manager, which knows the steps that are there now; removes what killed writers have left."""
    if self._manager is None:
      self._folder.mkdir(parents=True, exist_ok=True)
      for left in self._folder.glob(".deleted-*"):
        shutil.rmtree(left, ignore_errors=True)
      self._manager = orbax_files.manager(self._folder, STATE, RECORD, RECORD_FILE)
    else:
      self._manager.reload()
    return self._manager

  def _forget(self) -> None:
    """Close orbax's manager; the next write opens another one."""
    manager, self._manager = self._manager, None
    if manager is not None:
      self._thread.submit(manager.close).result()

  def _remove(self, step: int) -> None:
    # Renamed first: one that is killed half-way through deleting must not leave half a checkpoint under its name.
    gone = self._folder / f".deleted-{step}"
    shutil.rmtree(gone, ignore_errors=True)
    (self._folder / str(step)).rename(gone)
    shutil.rmtree(gone)

  def _set_aside(self, step: int, error: DamagedCheckpointError) -> None:
    place, number = self._folder / "damaged" / str(step), 1
    while place.exists():
      number += 1
      place = place.with_name(f"{step}-{number}")
    try:
      place.parent.mkdir(exist_ok=True)
      (self._folder / str(step)).rename(place)
      where = f"it now lies in {place}"
    except OSError as refusal:
      where = f"it could not be moved aside: {refusal.strerror}"
    self._forget()
    print(f"warning: the checkpoint of step {step} in {self._folder} is damaged, {error}; {where}", file=sys.stderr)

  def _record(self, step: int) -> dict[str, Any]:
    self.wait()
    folder = self._folder / str(step)
    if not folder.is_dir():
      raise FileNotFoundError(f"{self._folder} has no checkpoint of step {step}; it has {self._steps()}")
    if (folder / "default").is_dir() and not (folder / RECORD).exists() and not (folder / STATE).exists():
      raise SchemaError("it has no schema: it was written by sds_jax 0.1.0 before there were any")
    return records.read(folder / RECORD / RECORD_FILE, step)

  def _arrays(self, step: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """{name: array} as orbax reads them, not yet checked."""
    arrays = {name: records.empty(said) for name, said in record["leaves"].items()}
    full = [name for name, array in arrays.items() if array is None]
    return arrays | orbax_files.read(self._folder / str(step) / STATE, full)


def _superseded(steps: list[int], keep: int, period: int) -> list[int]:
  """Those of `steps` (ascending) that need not stay."""
  return [step for step in steps[:max(0, len(steps) - keep)] if not (period and step % period == 0)]
