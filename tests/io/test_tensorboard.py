"""Event files for TensorBoard: format, file names, flushing, and a full disk."""
import errno
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from sds_jax.io import tensorboard


def events(path):
  """Reads the events of a file and verifies the checksums."""
  data, result = path.read_bytes(), []
  while data:
    size, check = struct.unpack("<QI", data[:12])
    assert check == masked_crc32c(data[:8])
    body, (check,) = data[12:12 + size], struct.unpack("<I", data[12 + size:16 + size])
    assert check == masked_crc32c(body)
    result.append(Event.FromString(body))
    data = data[16 + size:]
  return result


def test_written_events_are_read(tmp_path):
  writer = tensorboard.EventWriter(tmp_path, 3)
  writer.add(3, dict(loss=0.5, grad=2.0))
  writer.add(7, dict(loss=0.25))
  writer.close()
  writer.close()
  (path,) = tmp_path.iterdir()
  assert path.name.startswith("events.out.tfevents.")
  version, start, *rest = events(path)
  assert version.file_version == "brain.Event:2"
  assert start.step == 3 and start.session_log.status == SessionLog.START
  assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in rest] == [
    (3, "loss", 0.5), (3, "grad", 2.0), (7, "loss", 0.25)]
  assert all(abs(e.wall_time - time.time()) < 60 for e in rest)


def test_no_file_is_written_twice(tmp_path, monkeypatch):
  """Opens files within the same second, and after the clock was set back."""
  for now in (2e9, 2e9, 2e9 - 3600, 2e9):
    monkeypatch.setattr(tensorboard.time, "time", lambda now=now: now)
    tensorboard.EventWriter(tmp_path, 1).close()
  assert len(list(tmp_path.iterdir())) == 4


def test_the_file_is_flushed_after_flush_s(tmp_path, monkeypatch):
  writer, now = tensorboard.EventWriter(tmp_path, 1), time.monotonic()
  (path,) = tmp_path.iterdir()
  writer.add(1, dict(loss=1.0))
  assert not path.stat().st_size
  monkeypatch.setattr(tensorboard.time, "monotonic", lambda: now + 2 * tensorboard.FLUSH_S)
  writer.add(2, dict(loss=1.0))
  assert len(events(path)) == 4
  writer.close()


def test_a_full_disk_raises_in_the_call(tmp_path):
  """Writes to /dev/full: the call raises, and closing raises at most once more."""
  writer = tensorboard.EventWriter(tmp_path, 1)
  writer._writer.close()
  writer._writer = tensorboard.RecordWriter("/dev/full")
  with pytest.raises(OSError) as caught:
    for step in range(1000):
      writer.add(step, dict(loss=1.0))
  assert caught.value.errno == errno.ENOSPC
  with pytest.raises(OSError, match="No space left"):
    writer.close()
  writer.close()
