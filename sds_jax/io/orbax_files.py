"""Orbax as checkpoints use it: by one process alone, with no threads of its own, arrays as numpy's."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from sds_jax.io.records import DamagedCheckpointError, one_line

_DRIVER = "zarr"
"""What `use_zarr3=False` means to tensorstore."""


def manager(folder: Path, arrays: str, record: str, record_file: str) -> ocp.CheckpointManager:
  """A manager of `folder`, which exists; it deletes none but what killed writers have left.

  A step has an item `arrays` (nested dictionaries of numpy arrays) and an item `record` (JSON, in `record_file`).
  """
  alone = _alone()
  # Synchronous: it runs in a thread of ours, and orbax's own threads go on to complain after a write that failed.
  options = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=True, enable_async_checkpointing=False,
                                         multiprocessing_options=alone)
  return ocp.CheckpointManager(folder, options=options, item_handlers={
      arrays: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, multiprocessing_options=alone),
      record: ocp.JsonCheckpointHandler(record_file, multiprocessing_options=alone)})


def read(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
  """The arrays of an item by their dotted names.

  By tensorstore, as orbax does, but without orbax's event loop: when one read fails that is closed, and the others that
  are still under way then complain on the terminal.

  Raises:
    DamagedCheckpointError: they cannot be read, for whatever reason.
  """
  store = dict(driver="ocdbt", base=f"file://{folder}/")
  try:
    opened = {name: tensorstore.open(dict(driver=_DRIVER, kvstore=dict(store, path=f"{name}/")), open=True, read=True,
                                     context=tensorstore.Context())
              for name in names}
    read = {name: array.result().read(order="C") for name, array in opened.items()}
    return {name: np.asarray(array.result(), order="C") for name, array in read.items()}
  except MemoryError:
    raise
  except Exception as error:  # tensorstore has many words for what can be wrong with files
    raise DamagedCheckpointError(f"its arrays cannot be read ({one_line(error)})") from error


def _alone() -> ocp.options.MultiprocessingOptions:
  """No barriers with other processes: they do not take part."""
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                            barrier_sync_key_prefix=f"sds_jax.{me}")
