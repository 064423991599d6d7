"""Orbax for checkpoints: a single process, no orbax threads, NumPy arrays."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from sds_jax.io.records import DamagedCheckpointError, one_line

_DRIVER = "zarr"
"""Tensorstore's driver for orbax's `use_zarr3=False`."""


def make_manager(folder: Path, arrays: str, record: str, record_file: str) -> ocp.CheckpointManager:
  """Returns a manager of an existing folder; deletes nothing.

  Args:
    folder: the folder of checkpoints.
    arrays: name of a step's item with nested dictionaries of NumPy arrays.
    record: name of a step's item with the JSON record.
    record_file: file name of the record.
  """
  alone = _alone()
  # Synchronous: writes run in a thread of `Checkpoints`, and orbax's threads go on to complain after a failed write.
  options = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False, enable_async_checkpointing=False,
                                         multiprocessing_options=alone)
  return ocp.CheckpointManager(folder, options=options, item_handlers={
      arrays: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, multiprocessing_options=alone),
      record: ocp.JsonCheckpointHandler(record_file, multiprocessing_options=alone)})


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
  """Reads the arrays of an item by dotted name.

  Raises:
    DamagedCheckpointError: an array cannot be read, for any reason.
  """
  # By tensorstore, as in orbax, but without orbax's event loop: a failed read closes the loop, and the pending reads
  # then complain on the terminal.
  store = dict(driver="ocdbt", base=f"file://{folder}/")
  try:
    opened = {name: tensorstore.open(dict(driver=_DRIVER, kvstore=dict(store, path=f"{name}/")), open=True, read=True,
                                     context=tensorstore.Context())
              for name in names}
    # All reads are started before the first result is awaited.
    reads = {name: array.result().read(order="C") for name, array in opened.items()}
    return {name: np.asarray(array.result(), order="C") for name, array in reads.items()}
  except MemoryError:
    raise
  except Exception as error:  # tensorstore raises many types for damaged files
    raise DamagedCheckpointError(f"its arrays cannot be read ({one_line(error)})") from error


def _alone() -> ocp.options.MultiprocessingOptions:
  """Returns options without barriers: other processes take no part."""
  # Without the prefix, barriers of several checkpoint managers would share a name.
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                            barrier_sync_key_prefix=f"sds_jax.{me}")
