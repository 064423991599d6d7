"""Small files of a prior's folder, with messages that say what is wrong and what to do about it."""
from __future__ import annotations

import json
import os
from pathlib import Path
import tempfile
from typing import Any, Callable


class CheckpointError(ValueError):
  """A prior's folder, or a file in it, is missing or isn't what it should be."""


def describe_impostor(path: Path) -> str | None:
  """What stands under `path` instead of data, when it is one of the things that failed downloads leave; else None."""
  with open(path, "rb") as file:
    head = file.read(512)
  if not head:
    return "is empty"
  if head.startswith(b"version https://git-lfs"):
    return "is a Git LFS pointer, not the file itself; run `git lfs pull` in that repository, or download the file"
  if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
    return ("is an HTML page, not the file itself; the download probably gave a login or error page (use the file's "
            "download link)")
  return None


def check_file(path: Path) -> None:
  """Raises CheckpointError when `path` is no file, or one of `describe_impostor`'s things."""
  if not path.is_file():
    raise CheckpointError(f"{path} does not exist")
  problem = describe_impostor(path)
  if problem:
    raise CheckpointError(f"{path} {problem}")


def read_json(path: Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    CheckpointError: no such file, or not a JSON object.
  """
  check_file(path)
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise CheckpointError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
  return value


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
  """Calls `write` with a temporary name in the same folder, then renames: a reader sees the old file or the new one."""
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  os.close(handle)
  temporary = Path(name)
  try:
    write(temporary)
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    temporary.chmod(0o644)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
  """Writes a JSON object, indented as published configs are, atomically."""
  write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
