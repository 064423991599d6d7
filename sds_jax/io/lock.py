"""A lock on a run's folder: one run at a time; the lock ends with the process and names the process."""
from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

FILE_NAME = ".lock"
"""Name of the lock file. Never deleted: waiting and new processes must lock the same file."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""Error numbers of file systems without locks."""


class LockedError(RuntimeError):
  """Another run uses the folder; the message names the process and the remedy."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Locks a folder until the end of the block.

  The folder must exist. The end of the process, too, releases the lock. On a file system without locks, prints a note
  and runs the block without a lock.

  Raises:
    LockedError: another run holds the lock.
    OSError: the lock file cannot be made, for example in a read-only folder.
  """
  path = Path(folder) / FILE_NAME
  holder = _holder(path)  # read first: some versions of filelock empty the file when trying to lock
  lock = filelock.FileLock(path)
  try:
    path.touch()  # raises in a read-only folder, where the behaviour of filelock depends on the version
    lock.acquire(timeout=0)  # fails at once instead of waiting for the other run
  except filelock.Timeout:
    raise LockedError(f"{folder} is in use by another run{holder or _holder(path)}; wait for it to end, stop it, or "
                      "give this one another --workdir") from None
  except (OSError, NotImplementedError) as error:
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
      raise
    print(f"note: the file system of {folder} has no locks, so nothing keeps a second run out of it")
    yield
    return
  try:
    _sign(path)
    yield
  finally:
    lock.release()


def _holder(path: Path) -> str:
  """Describes the process that holds the lock.

  '' if the file does not name the process.
  """
  try:
    holder = json.loads(path.read_text(encoding="utf-8"))
    return f" (process {holder['pid']} on {holder['host']}, since {holder['time']})"
  except (OSError, ValueError, KeyError, TypeError):
    return ""


def _sign(path: Path) -> None:
  # In place and not by a rename: the lock is on this very file. Failures are ignored: only the message needs the text.
  now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
  with contextlib.suppress(OSError), open(path, "r+", encoding="utf-8") as file:
    file.write(json.dumps(dict(pid=os.getpid(), host=socket.gethostname(), time=now)) + "\n")
    file.truncate()
