"""Checkpoints of a run, by orbax: the whole state, written under a temporary name and renamed, the newest few kept."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
  """A folder of checkpoints, `<folder>/<step>/`. Use as a context manager: leaving it waits for pending writes."""

  def __init__(self, folder: str | os.PathLike, keep: int = 2):
    """`keep` is how many of the newest stay; the folder is created."""
    self._folder = Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
        self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        item_handlers=ocp.StandardCheckpointHandler())

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: Any) -> None:
    with self._writing():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  def latest(self) -> int | None:
    """The newest step that was written whole, or None."""
    return self._manager.latest_step()

  def clear(self) -> None:
    """Delete all of them: a run that starts anew must not be taken for the old one, whose last step may be later."""
    for step in self._manager.all_steps():
      self._manager.delete(step)

  def save(self, step: int, state: Any) -> None:
    """Write `state` in the background; a step that is there already is left alone.

    Raises:
      OSError: this one, or one that was written in the background before, could not be written (a full disk, say);
        leaving the context raises it too.
    """
    if step not in self._manager.all_steps():
      with self._writing():
        self._manager.save(step, args=ocp.args.StandardSave(state))

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what orbax and tensorstore raise in their threads into an OSError with the system's own reason."""
    try:
      yield
    except (ValueError, RuntimeError) as error:
      reason = str(error).split(" [os_error_code")[0].rsplit(": ", 1)[-1].splitlines()[0]
      raise OSError(f"a checkpoint could not be written to {self._folder}: {reason}") from error

  def like(self, step: int) -> dict[str, Any]:
    """What the checkpoint of `step` is made of: name -> tree of `jax.ShapeDtypeStruct`, on the first device."""
    return {name: jax.tree.map(_array_like, tree) for name, tree in dict(self._manager.item_metadata(step)).items()}

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`, with the structure, shapes, dtypes and devices of `like`.

    Raises:
      ValueError: the checkpoint holds something else (say, it was made with other field settings).
    """
    # Looked at before anything is read: a read that fails half-way leaves orbax's threads complaining on the terminal.
    found, wanted = _shapes(self._manager.item_metadata(step)), _shapes(like)
    for name in sorted(found.keys() | wanted.keys()):
      if found.get(name) != wanted.get(name):
        raise ValueError(f"{name} is {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} here")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(step, args=ocp.args.StandardRestore(target))


def _array_like(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def _shapes(tree: Any) -> dict[str, str]:
  """{path: dtype and shape} of all arrays in a state, or in what a checkpoint says of one."""
  def name(path: tuple) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path)

  return {name(path): f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
