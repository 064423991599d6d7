"""Reads and writes small files of a prior's folder; errors name the file, the problem and the remedy."""
from __future__ import annotations

import json
import os
from pathlib import Path
import stat
import struct
import tempfile
from typing import Any, Callable

from sds_jax.priors.loading.composed import Composed

LARGEST_TEXT = 16 * 2**20
"""Upper limit of the bytes of a file that is parsed as a whole (JSON, a vocabulary, a weight file's header): several
times the largest published one, and small enough for memory."""


class CheckpointError(ValueError):
  """A missing, damaged or unsupported folder or file of a prior."""


def describe_impostor(path: Path) -> str | None:
  """Returns what a failed download left under `path` (nothing, a Git LFS pointer, an HTML page), or None for data."""
  with open(path, "rb") as file:
    head = file.read(512)
  if not head:
    return "is empty"
  if head.startswith(b"version https://git-lfs"):
    return "is a Git LFS pointer, not the file itself; run `git lfs pull` in that repository, or download the file"
  # Servers answer with a page and status 200 where a login is needed.
  if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
    return ("is an HTML page, not the file itself; the download probably gave a login or error page (use the file's "
            "download link)")
  return None


def is_there(path: Path | Composed) -> bool:
  """Returns whether a file, folder or link of this name exists; a broken link counts.

  An optional file may be absent, but a broken link to an optional file must not be ignored.
  """
  return path.exists() if isinstance(path, Composed) else os.path.lexists(path)


def check_file(path: Path, largest: int | None = None) -> None:
  """Raises CheckpointError unless `path` is a regular file, or a link to one, of at most `largest` bytes.

  Links are legal because the hub's cache consists of links. Files that `describe_impostor` recognises are refused.
  """
  try:
    status = os.stat(path)
  except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a name with a NUL
    link = f"is a link to {os.readlink(path)}, which" if os.path.islink(path) else ""
    raise CheckpointError(" ".join(f"{path} {link} does not exist".split())) from error
  except OSError as error:
    raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
  if not stat.S_ISREG(status.st_mode):  # opening a pipe would block, reading a device might never end
    raise CheckpointError(f"{path} is no regular file but {_kind_of(status.st_mode)}")
  if largest is not None and status.st_size > largest:
    raise CheckpointError(f"{path} has {status.st_size} bytes, more than the {largest} that such a file may have")
  problem = describe_impostor(path)
  if problem:
    raise CheckpointError(f"{path} {problem}")


def _kind_of(mode: int) -> str:
  kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
  return kinds.get(stat.S_IFMT(mode), "a device")


def read_text(path: Path | Composed) -> str:
  """Returns the UTF-8 text in a file.

  Raises:
    CheckpointError: no such file, more than LARGEST_TEXT, or not UTF-8.
  """
  if isinstance(path, Composed):
    if not path.is_file():
      raise CheckpointError(f"{path} does not exist")
    return path.content().decode("utf-8")
  check_file(path, LARGEST_TEXT)
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise CheckpointError(f"{path} is no UTF-8 text: {error}") from error


def parse_json(text: str | bytes) -> Any:
  """Returns the value of a JSON text.

  Raises:
    ValueError: the text is no JSON, is nested too deeply, or has a key twice in an object (json would drop one).
  """
  try:
    return json.loads(text, object_pairs_hook=_unique)
  except RecursionError:
    raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  # json keeps the last of two equal keys; a second reader may keep the first.
  if len(value) < len(pairs):
    keys: set[str] = set()
    twice = next(key for key, _ in pairs if key in keys or keys.add(key))
    raise ValueError(f"the key {twice[:80]!r} stands there twice")
  return value


def read_json(path: Path | Composed) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    CheckpointError: no such file, more than LARGEST_TEXT, or not a JSON object.
  """
  text = read_text(path)
  try:
    value = parse_json(text)
  except ValueError as error:
    raise CheckpointError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
  return value


def read_header(path: Path) -> tuple[dict[str, Any], int]:
  """Returns (the header of a safetensors file, where its data begin).

  The size of the header is checked, and that no name is in the header twice.

  Raises:
    CheckpointError: as `check_file`, or the header is longer than the file or than LARGEST_TEXT, or no JSON object.
  """
  check_file(path)
  with open(path, "rb") as file:
    head = file.read(8)
    # A safetensors file begins with the length of its header, 8 bytes little-endian.
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    limit = min(LARGEST_TEXT, max(path.stat().st_size - 8, 0))
    if not 0 < length <= limit:
      raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged or truncated, download it again: its "
                            f"header should have {length} bytes, at most {limit} can be")
    text = file.read(length)
  try:
    header = parse_json(text.decode("utf-8"))
    if not isinstance(header, dict):
      raise ValueError("it is no object")
  except ValueError as error:
    raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged or truncated, download it again: its "
                          f"header is not JSON: {error}") from error
  return header, 8 + length


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
  """Calls `write` with a temporary name in the same folder, then renames; readers see the old or the new file."""
  # In the same folder, since a rename is atomic only within one file system.
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  os.close(handle)
  temporary = Path(name)
  try:
    write(temporary)
    with open(temporary, "rb+") as file:
      # On the disk before the rename: a power cut leaves the old file or the new one.
      os.fsync(file.fileno())
    # mkstemp makes files that only their owner can read.
    temporary.chmod(0o644)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
  """Writes a JSON object atomically, indented like published configs."""
  write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
