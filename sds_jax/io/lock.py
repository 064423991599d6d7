"""A lock on a run's folder: one run at a time.

The lock names its process and ends with it.
"""
from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import filelock

FILE_NAME = ".lock"
"""Name of the lock file. Never deleted: waiting and new processes must lock the same file."""

_BEGINNING, _LONGEST = b'{"pid": ', 4096
"""How a signed lock begins, and more bytes than it has."""

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
    LockedError: another run holds the lock, or something else has the name of the lock.
    OSError: the lock file cannot be made, for example in a read-only folder.
  """
  path = Path(folder) / FILE_NAME
  signs = _make(path)
  holder = _holder(path)  # read first: some versions of filelock empty the file when trying to lock
  lock = filelock.FileLock(path)
  try:
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
    if signs:
      _sign(path)
    yield
  finally:
    lock.release()


def _make(path: Path) -> bool:
  """Makes the lock file if it is missing.

  Returns whether a run may write into it.

  Raises:
    LockedError: what is there is no lock of a run.
    OSError: the file cannot be made, for example in a read-only folder.
  """
  try:
    # Never through a link: a dangling one would make its target.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    return True
  except FileExistsError:
    status = os.lstat(path)
  # A second hard link may be somebody's file elsewhere, which signing would overwrite.
  regular = stat.S_ISREG(status.st_mode) and status.st_nlink == 1  # reading a pipe would block
  text = b""
  with contextlib.suppress(PermissionError):  # on Windows nobody else can read a file that is locked
    text = path.read_bytes()[:_LONGEST] if regular else b""
  # A power cut may leave NUL bytes or a part of the signature; both still count as a lock.
  if not regular or not text.strip(b"\0").startswith(_BEGINNING[:len(text.strip(b"\0"))]):
    raise LockedError(f"{path} is in the way: it is no lock that a run has made; move it away or delete it, or give "
                      "another --workdir")
  with open(path, "rb+"):  # raises in a read-only folder, where the behaviour of filelock depends on the version
    return bool(text)  # another program's lock is empty, and stays so


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
