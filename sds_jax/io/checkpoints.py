"""Checkpoints of a run, by orbax: written whole or not at all, in the background, and proved when they are read.

Beside the state lies a record of it: its step, the structure and a SHA-256 of every array, and whatever the run says
about itself; the record has a digest of its own. What is read must be what was written, to the bit, or it is damaged.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

SCHEMA = 1
"""Of the record; another one is another program's."""

DAMAGED = "damaged_checkpoints"
"""Beside the folder of checkpoints: where those go that cannot be read."""


class DamagedCheckpointError(ValueError):
  """A checkpoint that does not hold what was written: a file is missing, cut off or changed."""


class SchemaError(ValueError):
  """A checkpoint that is whole, but of another structure, or written by another version; the message says which."""


class Checkpoints:
  """A folder of checkpoints, `<folder>/<step>/`. Use as a context manager: leaving it waits for pending writes.

  In a job of several processes one of them uses it, and the others need not know.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2, keep_period: int = 0):
    """The folder is created.

    Args:
      keep: how many of the newest stay.
      keep_period: those whose step is a multiple of this stay, too; 0: no others.
    """
    self._folder = Path(folder).absolute()
    self._folder.mkdir(parents=True, exist_ok=True)
    alone = {}
    if jax.process_count() > 1:
      me = jax.process_index()
      alone = dict(multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"))
    self._manager = ocp.CheckpointManager(
        self._folder, item_handlers=dict(state=ocp.StandardCheckpointHandler(), record=ocp.JsonCheckpointHandler()),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_period or None, create=False, **alone))

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: Any) -> None:
    with self._writing():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  def steps(self) -> list[int]:
    """All steps that were written whole, in order."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest step that was written whole, or None."""
    return self._manager.latest_step()

  def clear(self) -> None:
    """Delete all of them: a run that starts anew must not be taken for the old one, whose last step may be later."""
    self.drop_after(-1)

  def drop_after(self, step: int) -> None:
    """Delete those of later steps: a run that has gone back makes them again."""
    with self._writing():
      self._manager.wait_until_finished()
      for later in self.steps():
        if later > step:
          self._manager.delete(later)

  def save(self, step: int, state: Any, about: dict[str, Any] | None = None) -> None:
    """Write `state` in the background; a step that is there already is left alone.

    Args:
      state: a pytree of arrays that this process can read.
      about: what else is to be known of it, as JSON can hold it.

    Raises:
      OSError: this one, or one that was written in the background before, could not be written (a full disk, say);
        leaving the context raises it too.
    """
    if step in self._manager.all_steps():
      return
    # A copy: on CPUs what device_get gives is the state's own memory, which the next step takes over.
    state = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(state))
    record = dict(schema=SCHEMA, step=step, about=about or {}, shapes=_shapes(state), digests=_digests(state))
    text = json.dumps(record, sort_keys=True)
    with self._writing():
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(dict(text=text, sha256=_sha256(text.encode())))))

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what orbax and tensorstore raise in their threads into an OSError with the system's own reason."""
    try:
      yield
    except (ValueError, RuntimeError) as error:
      reason = str(error).split(" [os_error_code")[0].rsplit(": ", 1)[-1].splitlines()[0]
      raise OSError(f"a checkpoint could not be written to {self._folder}: {reason}") from error

  def about(self, step: int) -> dict[str, Any]:
    """What `save` was told of the checkpoint of `step`.

    Raises:
      DamagedCheckpointError: the record is not whole.
      SchemaError: it is of another version.
    """
    return self._record(step)["about"]

  def _record(self, step: int) -> dict[str, Any]:
    with self._reading(step):
      stored = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
      if _sha256(stored["text"].encode()) != stored["sha256"]:
        raise ValueError("its record was changed")
      record = json.loads(stored["text"])
    if record["schema"] != SCHEMA:
      raise SchemaError(f"the checkpoint of step {step} in {self._folder} is of schema {record['schema']}, this "
                        f"version reads {SCHEMA}")
    return record

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Whatever goes wrong in reading is damage: orbax, tensorstore and JSON have many errors for it."""
    try:
      yield
    except Exception as error:
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      raise DamagedCheckpointError(f"the checkpoint of step {step} in {self._folder} is damaged ({reason})") from error

  def like(self, step: int) -> dict[str, Any]:
    """What the checkpoint of `step` is made of: name -> tree of `jax.ShapeDtypeStruct`, on the first device.

    Raises:
      DamagedCheckpointError: that cannot be read.
    """
    with self._reading(step):
      there = dict(self._manager.item_metadata(step)["state"])
      return {name: jax.tree.map(_array_like, tree) for name, tree in there.items()}

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`, with the structure, shapes, dtypes and devices of `like`.

    Args:
      like: a tree of arrays, or of `jax.ShapeDtypeStruct`; of numpy arrays, or without a sharding, it comes as numpy.

    Raises:
      DamagedCheckpointError: it is not what was written.
      SchemaError: it is another thing (say, it was made with other field settings).
    """
    record = self._record(step)
    found, wanted = record["shapes"], _shapes(like)
    for name in sorted(found.keys() | wanted.keys()):
      if found.get(name) != wanted.get(name):
        raise SchemaError(f"the checkpoint of step {step}: {name} is {found.get(name, 'absent')} there, "
                          f"{wanted.get(name, 'absent')} here")
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with self._reading(step):
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      state = jax.tree.map(np.asarray, self._manager.restore(step, args=args)["state"])
      if _digests(state) != record["digests"]:
        raise ValueError("an array was changed")
    return jax.tree.map(_placed, state, like)

  def newest(self, like: Any, accept: Callable[[dict[str, Any]], bool] = lambda about: True) -> tuple[int, Any] | None:
    """(step, state) of the newest checkpoint that is whole; None where there is none.

    Damaged ones are moved aside, into a folder beside this one, with a warning.

    Args:
      like: as of `restore`, or a function of what `like` (step) says that gives it.
      accept: of what was said `about` a checkpoint: whether it will do.

    Raises:
      SchemaError: it is another thing; it is not passed over.
    """
    for step in reversed(self.steps()):
      try:
        if accept(self.about(step)):
          return step, self.restore(step, like(self.like(step)) if callable(like) else like)
      except DamagedCheckpointError as error:
        print(f"warning: {error}; moved to {self._set_aside(step)}, the one before it is looked for")
    return None

  def _set_aside(self, step: int) -> Path:
    folder = self._folder.parent / DAMAGED
    folder.mkdir(exist_ok=True)
    place = next(place for place in (folder / f"{step}{f'-{n}' * (n > 0)}" for n in range(10**6))
                 if not place.exists())
    os.rename(self._folder / str(step), place)
    self._manager.reload()
    return place


def _sha256(data: Any) -> str:
  return hashlib.sha256(data).hexdigest()


def _named_leaves(tree: Any) -> dict[str, Any]:
  """{path: leaf}, paths as the attributes and keys on the way, joined by dots."""
  def name(path: tuple) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path)

  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _shapes(tree: Any) -> dict[str, str]:
  return {name: f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in _named_leaves(tree).items()}


def _digests(tree: Any) -> dict[str, str]:
  return {name: _sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
          for name, leaf in _named_leaves(tree).items()}


def _array_like(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def _placed(leaf: np.ndarray, like: Any) -> Any:
  """Where `like` is, in memory of its own, which the step can take over."""
  sharding = getattr(like, "sharding", None)
  return leaf if sharding is None else jax.device_put(leaf, sharding, may_alias=False)
