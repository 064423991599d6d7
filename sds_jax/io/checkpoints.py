"""Durable checkpoints of a run: written whole or not at all by orbax, and verified when read."""
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

from sds_jax.io import orbax_files, records, run_files
from sds_jax.io.records import DamagedCheckpointError, SchemaError

__all__ = ["Checkpoints", "DamagedCheckpointError", "SchemaError"]

STATE, RECORD, RECORD_FILE = "state", "record", "record.json"
"""Names in a step's folder: orbax's folder of arrays, the folder of the record, the file of the record."""


class Checkpoints:
  """A folder of checkpoints, `<folder>/<step>/`.

  Use as a context manager: the end of the block waits for the pending write. A single process uses the folder; other
  processes of a `jax.distributed` run take no part. Every method waits for the pending write, and raises OSError if the
  pending write failed.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2, keep_period: int = 0, read_only: bool = False):
    """Remembers the folder; the first save creates the folder.

    In the folder of a run under way (`run_files`), folders that no run has written are neither read nor removed.

    Args:
      folder: the folder of checkpoints.
      keep: number of newest checkpoints to keep.
      keep_period: checkpoints of multiples of `keep_period` are kept for good; 0 for none.
      read_only: whether damaged checkpoints stay where they are, as in the folder of another run.
    """
    self._folder, self._keep, self._period = Path(folder).absolute(), keep, keep_period
    self._read_only = read_only
    # A single worker, so writes, deletions and the end of orbax's manager never overlap.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending: concurrent.futures.Future | None = None
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: Any) -> None:
    try:
      self.wait()
    finally:
      self._close_manager()
      self._thread.shutdown()

  def steps(self) -> list[int]:
    """Returns the steps of all whole checkpoints, ascending.

    Only reading detects damage.
    """
    self.wait()
    return self._steps()

  def latest_step(self) -> int | None:
    """Returns the newest of `steps`, or None."""
    return max(self.steps(), default=None)

  def clear(self) -> None:
    """Deletes all checkpoints."""
    # Called by a run that starts anew: an old checkpoint with a later step would pass for the newest.
    self.delete_after(-1)

  def delete_after(self, step: int) -> None:
    """Deletes the checkpoints after `step`."""
    late = [other for other in self.steps() if other > step]
    for other in reversed(late):  # newest first: an interruption leaves a gapless series
      self._remove(other)
    self._close_manager()

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Copies `state` to the host and writes in the background.

    Does nothing if a checkpoint of `step` exists.

    Args:
      step: number of the checkpoint.
      state: a pytree of arrays: NumPy arrays, fully addressable JAX arrays, or typed keys.
      metadata: JSON; `metadata(step)` returns the value.

    Raises:
      OSError: the previous write failed, for example on a full disk. (The end of the context raises for the last one.)
      ValueError, TypeError: a leaf of the state is no array, or `metadata` is not JSON.
    """
    if step in self.steps():
      return
    # All copies are started before the first is awaited; the caller may donate the state once `save` returns.
    for leaf in jax.tree.leaves(state):
      if isinstance(leaf, jax.Array) and not records.is_key(leaf):
        leaf.copy_to_host_async()
    leaves = {name: (records.describe_leaf(leaf, path), records.copy_to_host(leaf))
              for name, (path, leaf) in records.flatten(state).items()}
    json.dumps(metadata)  # raises here and not in the background
    self._pending = self._thread.submit(run_files.in_thread(self._write), step, leaves, metadata)

  def metadata(self, step: int) -> dict[str, Any]:
    """Returns the metadata given to `save`, after a round trip through JSON.

    Raises:
      FileNotFoundError, DamagedCheckpointError, SchemaError: see `restore`.
    """
    return self._record(step)["about"]

  def abstract_state(self, step: int) -> dict[str, Any]:
    """Returns the structure of a checkpoint.

    Leaves are `jax.ShapeDtypeStruct` on the first device. Every container of the state becomes a dictionary. Raises as
    `restore`.
    """
    entries = self._record(step)["leaves"].values()
    return records.nest({tuple(entry["path"]): records.abstract_leaf(entry) for entry in entries})

  def restore(self, step: int, like: Any) -> Any:
    """Reads the state of `step`, bit by bit as saved.

    Args:
      step: number of the checkpoint.
      like: the expected structure, shapes, dtypes and sharding, as arrays or `jax.ShapeDtypeStruct` (without a
        sharding: the default device). The number of devices may differ from the number at saving. NumPy leaves stay
        NumPy arrays.

    Raises:
      FileNotFoundError: no checkpoint of `step` exists.
      DamagedCheckpointError: files are missing, cut, changed or unreadable.
      SchemaError: the checkpoint is whole but has another structure, shape, dtype or SCHEMA.
    """
    record, wanted = self._record(step), records.flatten(like)
    # Compared before any array is read: a run with other settings fails at once.
    records.check_structure(record, wanted)
    arrays, placed = self._arrays(step, record), []
    for name, (_, leaf) in wanted.items():
      entry = record["leaves"][name]
      records.check_leaf(name, arrays[name], entry)
      placed.append(records.place_leaf(arrays[name], entry, leaf))
    return jax.tree.unflatten(jax.tree.structure(like), placed)

  def restore_newest(self, like: Any,
                     accept: Callable[[dict[str, Any]], bool] = lambda metadata: True) -> tuple[int, Any] | None:
    """Reads the newest whole and accepted checkpoint.

    Returns (step, state), or None. Damaged checkpoints on the way are moved to `<folder>/damaged/`, with a line on
    stderr.

    Args:
      like: see `restore`; or a function from `self.abstract_state(step)` to such a tree.
      accept: whether a checkpoint with this metadata is acceptable.

    Raises:
      SchemaError: a whole and accepted checkpoint does not fit `like`, or has another SCHEMA.
    """
    # A state may be callable, too, but a callable state is a pytree with leaves of its own.
    is_function = callable(like) and jax.tree_util.all_leaves([like])
    for step in reversed(self.steps()):
      try:
        if accept(self.metadata(step)):
          return step, self.restore(step, like(self.abstract_state(step)) if is_function else like)
      except DamagedCheckpointError as error:
        self._set_aside(step, error)
    return None

  def _steps(self) -> list[int]:
    # Read from the disk each time, not from orbax's cache: orbax skips folders with unknown content.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      # isascii, because `isdigit` accepts superscripts, which `int` refuses.
      return sorted(int(path.name) for path in self._folder.iterdir()
                    if path.name.isascii() and path.name.isdigit() and path.is_dir() and self._is_own(path))
    return []

  def _is_own(self, path: Path) -> bool:
    """Returns whether a checkpoint or its remains may be read and removed."""
    record, place = run_files.owner(path)
    return record is None or record.owns_checkpoint(place)

  def _remove_leftovers(self) -> None:
    """Removes what killed or failed writers have left."""
    for pattern in (".deleted-*", "*.orbax-checkpoint-tmp*"):
      for left in self._folder.glob(pattern):
        if self._is_own(left):
          shutil.rmtree(left, ignore_errors=True)

  def wait(self) -> None:
    """Waits for the pending write, if any.

    Raises:
      OSError: the pending write failed.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def _write(self, step: int, leaves: dict[str, tuple[dict, np.ndarray]], metadata: dict[str, Any]) -> None:
    """Writes a checkpoint and deletes superseded ones.

    Runs in the thread.
    """
    entries = {name: dict(entry, sha256=records.digest(array)) for name, (entry, array) in leaves.items()}
    # Orbax cannot write arrays without elements; the record describes such arrays completely.
    nonempty = {tuple(entry["path"]): array for entry, array in leaves.values() if array.size}
    items = {RECORD: ocp.args.JsonSave(records.make_record(step, entries, metadata))}
    if nonempty:
      items[STATE] = ocp.args.PyTreeSave(records.nest(nonempty))
    record, place = run_files.owner(self._folder / str(step))
    with self._writing():
      manager = self._open()
      # Recorded before the write: a run killed in between leaves no folder that a later run takes for another's.
      if record is not None:
        record.add_checkpoint(place)
      # force: the caller decides when to save, not orbax's policy.
      manager.save(step, args=ocp.args.Composite(**items), force=True)
      # The names tell a later run whether somebody has put another file into the folder.
      if record is not None:
        record.add_checkpoint(place, run_files.names_within(place))
      # Only once the new checkpoint is whole: the folder never lacks a checkpoint.
      for old in _superseded(self._steps(), self._keep, self._period):
        self._remove(old)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns errors of orbax and tensorstore into an OSError.

    The message has the system's reason.
    """
    try:
      yield
    # A ValueError with a complete message; below it would pass for a failure of the disk.
    except run_files.FileInTheWayError:
      raise
    except (ValueError, RuntimeError, OSError) as error:
      self._remove_leftovers()  # frees the space on a full disk
      # The system's words stand behind the last colon, before tensorstore's details in brackets.
      reason = str(error).split(" [os_error_code")[0].rsplit(": ", 1)[-1].splitlines()[0]
      raise OSError(f"a checkpoint could not be written to {self._folder}: {reason}") from error

  def _open(self) -> ocp.CheckpointManager:
    """Returns orbax's manager with current steps.

    Removes leftovers of killed writers.
    """
    if self._manager is None:
      record, place = run_files.owner(self._folder / RECORD_FILE)
      if record is not None:
        record.claim(place)
      self._folder.mkdir(parents=True, exist_ok=True)
      self._remove_leftovers()
      self._manager = orbax_files.make_manager(self._folder, STATE, RECORD, RECORD_FILE)
    else:
      self._manager.reload()
    return self._manager

  def _close_manager(self) -> None:
    """Closes orbax's manager; the next write opens a new manager."""
    manager, self._manager = self._manager, None
    if manager is not None:
      self._thread.submit(manager.close).result()

  def _remove(self, step: int) -> None:
    # Renamed first: a process killed while deleting must not leave half a checkpoint under the step's name.
    trash = self._folder / f".deleted-{step}"
    shutil.rmtree(trash, ignore_errors=True)
    (self._folder / str(step)).rename(trash)
    shutil.rmtree(trash)

  def _set_aside(self, step: int, error: DamagedCheckpointError) -> None:
    if self._read_only:
      print(f"warning: the checkpoint of step {step} in {self._folder} is damaged, {error}", file=sys.stderr)
      return
    place, number = self._folder / "damaged" / str(step), 1
    # `lexists` and not `exists`: a dangling link takes the name, too.
    while os.path.lexists(place):
      number += 1
      place = place.with_name(f"{step}-{number}")
    try:
      place.parent.mkdir(exist_ok=True)
      (self._folder / str(step)).rename(place)
      outcome = f"moved to {place}"
    except OSError as refusal:
      outcome = f"could not be moved aside: {refusal.strerror}"
    self._close_manager()
    print(f"warning: the checkpoint of step {step} in {self._folder} is damaged, {error}; {outcome}", file=sys.stderr)

  def _record(self, step: int) -> dict[str, Any]:
    self.wait()
    folder = self._folder / str(step)
    if not folder.is_dir():
      raise FileNotFoundError(f"{self._folder} has no checkpoint of step {step}; it has {self._steps()}")
    # `default` is orbax's name for the only item of a step, as version 0.1.0 wrote it.
    if (folder / "default").is_dir() and not (folder / RECORD).exists() and not (folder / STATE).exists():
      raise SchemaError("it has no schema: it was written by sds_jax 0.1.0 before there were any")
    return records.read_record(folder / RECORD / RECORD_FILE, step)

  def _arrays(self, step: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads {name: array}, not yet verified."""
    arrays = {name: records.empty_leaf(entry) for name, entry in record["leaves"].items()}
    nonempty = [name for name, array in arrays.items() if array is None]
    return arrays | orbax_files.read_arrays(self._folder / str(step) / STATE, nonempty)


def _superseded(steps: list[int], keep: int, period: int) -> list[int]:
  """Returns the steps to delete, given all `steps` (ascending)."""
  return [step for step in steps[:max(0, len(steps) - keep)] if not (period and step % period == 0)]
