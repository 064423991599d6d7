"""Event files for TensorBoard, in tensorboardX's format but without tensorboardX's thread.

In tensorboardX's thread a disk error goes to the terminal, and the run then waits for ever on a queue without a reader.
"""
from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sds_jax.io import run_files


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
  """Makes the import of a module fail within the block, unless the module is imported already."""
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None
  try:
    yield
  finally:
    del sys.modules[name]


# Where torch is installed, tensorboardX imports it for tensors that this module never writes. That takes seconds and
# hundreds of megabytes of every run.
with _absent("torch"):
  from tensorboardX import summary
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.record_writer import RecordWriter

FLUSH_S = 30.0
"""Seconds between flushes to the disk."""


class EventWriter:
  """Writes one file of events.

  A failed write raises OSError in the call that notices the failure.
  """

  def __init__(self, folder: str | os.PathLike, first: int):
    """Opens a new file `events.out.tfevents.*` in `folder`.

    TensorBoard discards the points of older files from step `first` on.
    """
    path = _unused(Path(folder))
    self._writer, self._flushed = RecordWriter(str(path)), time.monotonic()
    # Every file of events begins with the version of the format.
    self._write(file_version="brain.Event:2")
    self._write(step=first, session_log=SessionLog(status=SessionLog.START))
    record, place = run_files.owner(path)
    if record is not None:
      self._writer.flush()
      record.add(place, run_files.file_digest(path), grows=True)

  def _write(self, **event: Any) -> None:
    self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Adds one point to each curve."""
    for name, value in values.items():
      self._write(step=step, summary=summary.scalar(name, value))
    # The clock of the system may jump; the monotonic clock does not.
    if time.monotonic() - self._flushed > FLUSH_S:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Closes the file, even if the last flush fails.

    A second call does nothing.
    """
    self._writer.close()


def _unused(folder: Path) -> Path:
  """Returns an unused path that sorts by time."""
  # Clocks may go backwards, and a resumed run may start within the same second.
  number = int(time.time())
  while os.path.lexists(path := folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}"):
    number += 1
  return path
