"""The record of the files that runs have written into a run folder.

A run changes and removes no other file there.

The record `files.jsonl` has a line for each content of each file: path in the folder, number of bytes, SHA-256. A line
is added before its file gets its name, so a killed run leaves no file without a line. Readers never follow a path of
the record: a run makes all names itself, and the record only tells whether a file of that name is the run's own.
"""
from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import json
import os
import re
import stat
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

T = TypeVar("T")

FILE_NAME = "files.jsonl"
"""Name of the record in the folder of a run."""

FORMAT = {"files_written_by_runs": 1}
"""First line of a record; other files of the same name are not read."""

CHECKPOINT = "checkpoint"
"""In a layout: the folder of a checkpoint, or what a killed writer left of one."""

Layout = Mapping[Union[str, re.Pattern], Union[None, str, "Layout"]]
"""Names that a run may write -> None for a file, CHECKPOINT, or the layout of a folder; patterns match lower case."""

_STEP = re.compile(r"(?:\.deleted-)?(\d+)(?:\.orbax-checkpoint-tmp.*)?")
_CHECKPOINT_PARTS = {"state", "record", "default", "metadata", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Names within the folder of a checkpoint whose writer was killed before it could list them."""

CHECKPOINTS: Layout = {_STEP: CHECKPOINT, "damaged": {}}
"""Layout of the folder of checkpoints."""


class FileInTheWayError(ValueError):
  """Raised where a run would write over something that no run has written.

  The message is one line.
  """


class RunFiles:
  """The record of one folder, to which the writers of `io.files` add."""

  def __init__(self, folder: str | os.PathLike):
    """Reads the record of a folder.

    Without a record no file of the folder was written by a run.

    Raises:
      FileInTheWayError: another file has the name of the record.
    """
    # The folder itself may be reached through a link; links below the folder are refused by `claim`.
    self.folder = Path(os.path.realpath(folder))
    self._entries: dict[str, list[dict[str, Any]]] = {}
    self._known: dict[str, tuple[int, ...]] = {}  # path -> signature of the file whose content has been compared
    self._lock = threading.Lock()  # sheets and checkpoints are written by threads
    self._path = self.folder / FILE_NAME
    self.exists = os.path.lexists(self._path)
    self._torn = False  # whether a power cut has left the last line half-written
    if self.exists:
      self._read()

  def _read(self) -> None:
    if not _is_file(self._path):
      raise self._in_the_way(self._path, f"is {_kind(self._path)}")
    lines = self._path.read_bytes().split(b"\n")
    # A whole record ends in a newline, which makes the last part empty.
    self._torn = bool(lines[-1])
    if _parsed(lines[0]) != FORMAT:
      raise self._in_the_way(self._path, "is no record of the files of runs")
    for line in lines[1:]:
      entry = _parsed(line)
      if isinstance(entry.get("path"), str):
        self._entries.setdefault(entry["path"], []).append(entry)

  def check(self, layout: Layout) -> None:
    """Raises FileInTheWayError if something that no run has written is in a run's way."""
    for path, kind in _matches(self.folder, layout):
      self._check(path, kind)

  def adopt(self, layout: Layout) -> None:
    """Records the files of a run without a record by their names.

    Runs of earlier versions have no record.
    """
    for path, kind in _matches(self.folder, layout):
      if kind is None and _is_file(path):
        self.add(path, file_digest(path), grows=path.name == "metrics.jsonl")
      elif kind == CHECKPOINT and _is_folder(path) and set(os.listdir(path)) & {"state", "record", "default"}:
        self.add_checkpoint(path, names_within(path))

  def owns(self, path: Path) -> bool:
    """Returns whether a run has written the regular file `path` as it is now."""
    key = self._key(path)
    with contextlib.suppress(OSError):
      status = os.lstat(path)
      if not stat.S_ISREG(status.st_mode):
        return False
      # An unchanged inode, size and time stand for unchanged content: large files are hashed once.
      if self._known.get(key) == _signature(status):
        return True
      # Any recorded content will do: a killed run may have left the content before its last write.
      for entry in self._entries.get(key, []):
        size, digest, grows = entry.get("bytes"), entry.get("sha256"), entry.get("grows", False)
        if isinstance(size, int) and (status.st_size >= size if grows else status.st_size == size):
          if file_digest(path, size)[1] == digest:
            self._known[key] = _signature(status)
            return True
    return False

  def claim(self, path: Path) -> None:
    """Raises FileInTheWayError unless `path` is free or a run has written it."""
    for place in [parent for parent in path.parents if parent != self.folder and parent.is_relative_to(self.folder)]:
      if os.path.lexists(place) and not _is_folder(place):
        raise self._in_the_way(place, f"is {_kind(place)}")
    if os.path.lexists(path):
      self._check(path, None)

  def add(self, path: Path, content: tuple[int, str], grows: bool = False) -> None:
    """Adds a line: `path` will have this content.

    A file that grows will begin with this content.

    Args:
      path: in the folder.
      content: number of bytes and SHA-256.
      grows: whether the file is appended to.
    """
    size, digest = content
    # Every file begins with an empty content.
    self._append(dict(path=self._key(path), bytes=size, sha256=digest, **(dict(grows=True) if grows and size else {})))

  def written(self, path: Path) -> None:
    """Notes that the file at `path` has a recorded content.

    `owns` then need not read the file.
    """
    self._known[self._key(path)] = _signature(os.lstat(path))

  def add_checkpoint(self, path: Path, names: list[str] | None = None) -> None:
    """Adds a line: a run writes the checkpoint of this folder.

    The name of the folder is the step.

    Args:
      path: the folder.
      names: the paths of its files within it, once it is whole.
    """
    self._append(dict(path=self._checkpoint_key(path), folder=True, **({} if names is None else dict(names=names))))

  def owns_checkpoint(self, path: Path) -> bool:
    """Returns whether the folder holds a checkpoint of a run and nothing else."""
    entries = [entry for entry in self._entries.get(self._checkpoint_key(path), []) if entry.get("folder")]
    if not _is_folder(path) or not entries:
      return False
    # The list of names is added only after the write, so an unfinished write has none.
    if "orbax-checkpoint-tmp" in path.name:
      return True
    lists = [entry["names"] for entry in entries if isinstance(entry.get("names"), list)]
    names = {str(name) for listed in lists for name in listed}
    # A subset: a kill during deletion leaves fewer files than were recorded.
    return set(names_within(path)) <= names if names else set(os.listdir(path)) <= _CHECKPOINT_PARTS

  def _checkpoint_key(self, path: Path) -> str:
    # A folder renamed for deletion, and an unfinished one, belong to the record of their step.
    return self._key(path.with_name(_STEP.fullmatch(path.name)[1]))

  def _check(self, path: Path, kind: str | Layout | None) -> None:
    if isinstance(kind, Mapping):
      if not _is_folder(path):
        raise self._in_the_way(path, f"is {_kind(path)}")
    elif kind == CHECKPOINT:
      if not self.owns_checkpoint(path):
        raise self._in_the_way(path, "holds no checkpoint of a run of this folder alone")
    elif not _is_file(path):
      raise self._in_the_way(path, f"is {_kind(path)}")
    elif not self.owns(path):
      raise self._in_the_way(path, "has changed since a run wrote it" if self._key(path) in self._entries else
                             "was written by no run of this folder")

  def _key(self, path: Path) -> str:
    return path.relative_to(self.folder).as_posix() if path.is_absolute() else path.as_posix()

  def _append(self, entry: dict[str, Any]) -> None:
    with self._lock:
      entries = self._entries.setdefault(entry["path"], [])
      if entry in entries:
        return
      if self.exists and os.stat(self._path).st_nlink > 1:  # a backup of hard links must not grow
        copy = self._path.with_name(f".{uuid.uuid4().hex[:12]}.tmp.jsonl")
        with open(copy, "xb") as file:
          file.write(self._path.read_bytes())
        os.replace(copy, self._path)
      with open(self._path, "ab" if self.exists else "xb", buffering=0) as file:
        # A newline ends the torn line, which readers skip, and keeps the new line apart from it.
        head = b"\n" * self._torn if self.exists else json.dumps(FORMAT).encode() + b"\n"
        file.write(head + json.dumps(entry).encode() + b"\n")
        # The line reaches the disk before its file gets its name.
        os.fsync(file.fileno())
      self.exists, self._torn = True, False
      entries.append(entry)

  def _in_the_way(self, path: Path, reason: str) -> FileInTheWayError:
    return FileInTheWayError(f"{path} is in the way: it {reason}, and a run changes only files that a run of its "
                             "folder has written; move it away or delete it, or give another --workdir")


_active: contextvars.ContextVar[tuple[RunFiles, ...]] = contextvars.ContextVar("records", default=())
"""The records of the enclosing blocks of `recording`, of this thread alone; see `in_thread`."""


@contextlib.contextmanager
def recording(folder: str | os.PathLike | RunFiles) -> Iterator[RunFiles]:
  """Records what `io` writes into a folder until the end of the block.

  Within a block for the same folder the outer record goes on.

  Args:
    folder: the folder, or its record.
  """
  place = folder.folder if isinstance(folder, RunFiles) else Path(os.path.realpath(folder))
  outer = next((record for record in _active.get() if record.folder == place), None)
  if outer is not None:
    yield outer
    return
  record = folder if isinstance(folder, RunFiles) else RunFiles(place)
  token = _active.set((*_active.get(), record))
  try:
    yield record
  finally:
    _active.reset(token)


def in_thread(function: Callable[..., T]) -> Callable[..., T]:
  """Returns the function for another thread, where its files are recorded, too."""
  # A thread begins with empty context variables, and a file that it writes would lack a record.
  return functools.partial(contextvars.copy_context().run, function)


def owner(path: str | os.PathLike) -> tuple[RunFiles | None, Path]:
  """Returns the record of the run whose folder holds `path`, and the path there.

  The record is None for a path in no run's folder.

  Links below the folder of the run are not followed, because `claim` refuses them.
  """
  place = Path(os.path.abspath(path))
  for record in reversed(_active.get()):
    for parent in (place, *place.parents):
      if Path(os.path.realpath(parent)) == record.folder:
        return record, record.folder / place.relative_to(parent)
  return None, place


def note(path: str | os.PathLike) -> None:
  """Records a file that a user's function has written.

  A later run may then replace the file.
  """
  record, place = owner(path)
  if record is not None and _is_file(place):
    record.add(place, file_digest(place))


def delete(path: str | os.PathLike) -> None:
  """Deletes a file that a run has written.

  Any other file is left.
  """
  record, place = owner(path)
  if record is not None and record.owns(place):
    place.unlink(missing_ok=True)


def is_in(layout: Layout, path: Path) -> bool:
  """Returns whether the layout names a file of this path.

  The path is relative to the folder of the run.
  """
  kind: str | Layout | None = layout
  for part in path.parts:
    if not isinstance(kind, Mapping):
      return kind == CHECKPOINT
    kind = _find(kind, part)
    if kind is ...:
      return False
  return kind is None


def digest_of(data: bytes) -> tuple[int, str]:
  """Returns number of bytes and SHA-256 of a content, for `RunFiles.add`."""
  return len(data), hashlib.sha256(data).hexdigest()


def _matches(folder: Path, layout: Layout) -> Iterator[tuple[Path, str | Layout | None]]:
  """Yields (path, kind) of everything that has a name of the layout.

  Folders come before their content.
  """
  try:
    names = sorted(os.listdir(folder))
  except (FileNotFoundError, NotADirectoryError):
    return
  for name in names:
    kind = _find(layout, name)
    if kind is ...:
      continue
    yield folder / name, kind
    if isinstance(kind, Mapping) and _is_folder(folder / name):
      yield from _matches(folder / name, kind)


def _find(layout: Layout, name: str) -> Any:
  """Returns the kind of a name in a layout.

  `...` stands for a name that is not in the layout.
  """
  lower = name.casefold()  # names that differ in case only are one file on many file systems
  if lower in layout:
    return layout[lower]
  return next((kind for pattern, kind in layout.items() if isinstance(pattern, re.Pattern) and
               pattern.fullmatch(lower)), ...)


def _parsed(line: bytes) -> dict[str, Any]:
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return entry if isinstance(entry, dict) else {}


def file_digest(path: Path, size: int | None = None) -> tuple[int, str]:
  """Returns number of bytes and SHA-256 of a file, or of its first `size` bytes."""
  total, state = 0, hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(2**20 if size is None else min(2**20, size - total)):
      total += len(block)
      state.update(block)
  return total, state.hexdigest()


def _signature(status: os.stat_result) -> tuple[int, ...]:
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_file(path: Path) -> bool:
  return path.is_file() and not path.is_symlink()


def _is_folder(path: Path) -> bool:
  return path.is_dir() and not path.is_symlink()


def names_within(folder: Path) -> list[str]:
  """Returns the paths within a folder of everything but folders, sorted."""
  return sorted((Path(place) / name).relative_to(folder).as_posix() for place, folders, files in os.walk(folder)
                for name in (*files, *(name for name in folders if os.path.islink(Path(place) / name))))


def _kind(path: Path) -> str:
  mode = os.lstat(path).st_mode
  kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe",
           stat.S_IFSOCK: "a socket"}
  return kinds.get(stat.S_IFMT(mode), "a device")
