"""One run at a time in a folder: a lock that dies with its process, and says whose it is."""
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
"""The lock's file. It stays: who waits for it and who comes new must mean the same file."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What file systems answer that cannot lock."""


class LockedError(RuntimeError):
  """Another run is at work in the folder; the message says which one and what to do."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other runs out of an existing folder until the block ends, or this process does, however it does.

  Where the file system has no locks a note is printed, and the block runs without one.

  Raises:
    LockedError: another run holds it.
    OSError: the lock's file cannot be made, since the folder is read-only, say.
  """
  path = Path(folder) / FILE_NAME
  holder = _holder(path)  # read before: some versions of filelock empty the file when they try it
  lock = filelock.FileLock(path)
  try:
    path.touch()  # raises where the folder is read-only; what filelock does there depends on its version
    lock.acquire(timeout=0)
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
  """Whose the lock is, in words; nothing where the file does not say."""
  try:
    told = json.loads(path.read_text(encoding="utf-8"))
    return f" (process {told['pid']} on {told['host']}, since {told['time']})"
  except (OSError, ValueError, KeyError, TypeError):
    return ""


def _sign(path: Path) -> None:
  # In place and not by a rename: the lock is on this very file. Only for the message, so that it may fail.
  now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
  with contextlib.suppress(OSError), open(path, "r+", encoding="utf-8") as file:
    file.write(json.dumps(dict(pid=os.getpid(), host=socket.gethostname(), time=now)) + "\n")
    file.truncate()
