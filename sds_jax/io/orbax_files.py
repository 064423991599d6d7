"""Orbax as checkpoints use it: by one process alone, with no threads of its own, arrays as numpy's."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sds_jax.io.records import DamagedCheckpointError, one_line


def manager(folder: Path, arrays: str, record: str, record_file: str) -> ocp.CheckpointManager:
  """A manager of `folder`, which exists; it deletes none but what killed writers have left.

  A step has an item `arrays` (nested dictionaries of numpy arrays) and an item `record` (JSON, in `record_file`).
  """
  alone = _alone()
  # Synchronous: it runs in a thread of ours, and orbax's own threads go on to complain after a write that failed.
  options = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=True, enable_async_checkpointing=False,
                                         multiprocessing_options=alone)
  return ocp.CheckpointManager(folder, options=options, item_handlers={
      arrays: ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
      record: ocp.JsonCheckpointHandler(record_file, multiprocessing_options=alone)})


def read(folder: Path, structure: dict[str, Any]) -> dict[str, Any]:
  """The arrays of an item, in nested dictionaries with the keys of `structure`.

  Raises:
    DamagedCheckpointError: they cannot be read, for whatever reason.
  """
  alone = _alone()
  options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
                          multiprocessing_options=alone) as reader:
      found = reader.restore(folder, args=ocp.args.PyTreeRestore(item=structure, restore_args=options))
    return jax.tree.map(lambda array: np.asarray(array, order="C"), found)
  except MemoryError:
    raise
  except Exception as error:  # orbax and tensorstore have many words for what can be wrong with files
    raise DamagedCheckpointError(f"its arrays cannot be read ({one_line(error)})") from error


def _alone() -> ocp.options.MultiprocessingOptions:
  """No barriers with other processes: they do not take part."""
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                            barrier_sync_key_prefix=f"sds_jax.{me}")
