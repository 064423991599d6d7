"""Digests of whole weight files, remembered between runs, so that gigabytes are hashed once."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
import re
import time

from sds_jax.priors.loading.files import write_atomically

_SMALL = 16 * 2**20
"""Files of at most this many bytes are hashed each time."""
_SETTLED = 2.0
"""Seconds after its last change from which a file's times identify its content; file systems count in steps."""


def file_digest(path: Path, memory: Path) -> str:
  """Returns the SHA-256 of a whole file, in hexadecimal.

  The digest of a large file is remembered under what the system says of it: device, inode, size, and the times of its
  last changes in nanoseconds. A change of the content changes one of the times, also where the writer sets the other.

  Args:
    path: of the file.
    memory: folder in which digests are remembered, in `digests/`; the disk may refuse.
  """
  status = os.stat(path)
  if status.st_size <= _SMALL:
    return _hash(path)
  facts = [os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
  remembered = memory / "digests" / hashlib.sha256(repr(facts).encode()).hexdigest()
  try:
    text = remembered.read_text(encoding="ascii")
    # A cut or damaged memory is ignored.
    if re.fullmatch("[0-9a-f]{64}", text):
      return text
  except (OSError, ValueError):
    pass
  digest = _hash(path)
  after = os.stat(path)
  # Written to while it was read: the digest is of neither content.
  unchanged = (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
  # A write within the same step of the file system's clock would leave the times as they are.
  if unchanged and time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
    try:
      remembered.parent.mkdir(parents=True, exist_ok=True)
      write_atomically(remembered, lambda temporary: temporary.write_text(digest, encoding="ascii"))
    except OSError:
      pass
  return digest


def _hash(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
