"""Curves for TensorBoard, in tensorboardX's file format but without its thread.

In that thread an error of the disk goes to the terminal, and the run then waits for ever on a queue that nobody reads.
"""
from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

FLUSH_S = 30.0
"""After so many seconds what was written is flushed to the disk."""


class EventWriter:
  """A file of events. Whatever the system cannot write is an OSError of the call that notices."""

  def __init__(self, folder: str | os.PathLike, first: int):
    """A new file `events.out.tfevents.*` in `folder`; what older ones tell of step `first` on is void."""
    self._writer, self._flushed = RecordWriter(str(_unused(Path(folder)))), time.monotonic()
    self._write(file_version="brain.Event:2")
    self._write(step=first, session_log=SessionLog(status=SessionLog.START))

  def _write(self, **event: Any) -> None:
    self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """One point of each curve."""
    for name, value in values.items():
      self._write(step=step, summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > FLUSH_S:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Whether or not its last words can be written, the file is closed; again it does nothing."""
    self._writer.close()


def _unused(folder: Path) -> Path:
  """A name that sorts by time, and that no file has: clocks go backwards, and a run may go back within a second."""
  number = int(time.time())
  while (path := folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}").exists():
    number += 1
  return path
