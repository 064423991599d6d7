"""Atomic writes, JSON, folder names from prompts, and the metrics log of a run."""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import unicodedata
import uuid
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Mapping

import numpy as np

from sds_jax.io import run_files

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)$")  # device names of Windows


class DamagedFileError(ValueError):
  """A damaged file of a run.

  The message names the file and the remedy.
  """


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, grows: bool = False) -> Iterator[Path]:
  """Yields a temporary path, renamed to `path` after the block.

  For writers that need a file name; the temporary file has the same folder and suffix as `path`. If the block raises,
  the temporary file is removed, and an existing file at `path` is untouched. In the folder of a run under way the file
  is recorded (`run_files`).

  Args:
    path: the file.
    grows: whether lines will be appended to the file.

  Raises:
    FileInTheWayError: in the folder of a run under way, something that no run has written has this path.
  """
  path = Path(path)
  record, place = run_files.owner(path)
  if record is not None:
    record.claim(place)
  path.parent.mkdir(parents=True, exist_ok=True)
  # In the folder of `path`, since a rename is atomic only within one file system. A random name keeps writers apart.
  temporary = path.parent / f".{uuid.uuid4().hex[:12]}.tmp{path.suffix}"
  try:
    yield temporary
    # Flushed to the disk before the rename, so a power cut leaves either the old file or the new file.
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    if record is not None:
      # Checked again: somebody may have put a file there while the block ran.
      record.claim(place)
      # Recorded before the rename: a kill in between leaves no file without a record.
      record.add(place, run_files.file_digest(temporary), grows)
    os.replace(temporary, path)
    if record is not None:
      record.written(place)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, grows: bool = False) -> Iterator[BinaryIO]:
  """Yields a binary file, renamed to `path` after the block.

  See `atomic_path`.
  """
  with atomic_path(path, grows) as temporary, open(temporary, "xb") as file:
    yield file
    file.flush()


def to_jsonable(value: Any) -> Any:
  """Converts a value to JSON types.

  Array scalars become Python scalars, arrays lists, paths strings, NaN and infinities None.
  """
  if isinstance(value, Mapping):
    return {str(k): to_jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_jsonable(v) for v in value]
  # NumPy scalars are no instances of int or bool (np.float64 is one of float), and go through asarray below.
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  array = np.asarray(value)
  if array.dtype.kind == "V":  # NumPy reports bfloat16 and float8 as void types
    array = array.astype(np.float64)
  return to_jsonable(array.tolist()) if array.dtype.kind in "biufU" else str(value)


def write_json(data: Any, path: str | os.PathLike) -> Path:
  """Writes `data` as indented UTF-8 JSON; returns the path.

  Values go through `to_jsonable`. The write is atomic.
  """
  # allow_nan=False, because NaN is no JSON and other readers would refuse the file.
  text = json.dumps(to_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False)
  with atomic_write(path) as file:
    # A prompt may hold lone surrogates, which UTF-8 cannot encode.
    file.write(text.encode("utf-8", "replace") + b"\n")
  return Path(path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object; {} without a file.

  Counterpart of `write_json`.

  Raises:
    DamagedFileError: the file is not JSON, or not a JSON object.
  """
  path = Path(path)
  if not path.exists():
    return {}
  if not path.is_file():  # reading a pipe would block
    raise DamagedFileError(f"{path} is no file; delete it, and the command writes a new one")
  try:
    data = json.loads(path.read_bytes())
  except ValueError as error:
    raise DamagedFileError(f"{path} is damaged ({error}); delete the file, and the command writes a new one") from error
  if not isinstance(data, dict):
    raise DamagedFileError(f"{path} is damaged (no JSON object); delete the file, and the command writes a new one")
  return data


def prompt_slug(prompt: str, limit: int = 60) -> str:
  """Returns a folder name for a prompt.

  The name is lower-case ASCII words joined by '-', at most `limit` characters, never empty. Only [a-z0-9-] occur: no
  separators, dots, newlines or emoji. If letters or digits are lost (a long prompt, another script), eight digits of
  the prompt's SHA-256 keep the names of different prompts distinct.
  """
  # NFKD splits accented letters into letter and accent, so that "é" becomes "e".
  folded = unicodedata.normalize("NFKD", prompt)
  ascii_text = folded.encode("ascii", "ignore").decode().lower()
  slug = "-".join(re.findall(r"[a-z0-9]+", ascii_text))
  lost_letters = any(ord(c) > 127 and c.isalnum() for c in folded)
  if slug and len(slug) <= limit and not lost_letters and not _RESERVED.match(slug):
    return slug
  # surrogatepass: a prompt from the command line may hold lone surrogates.
  digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
  available = limit - len(digest) - 1
  if len(slug) > available:
    head = slug[:available + 1]
    slug = head.rsplit("-", 1)[0] if "-" in head else head[:available]  # cut between words if possible
  return f"{slug or 'object'}-{digest}"


def append_metrics(path: str | os.PathLike, step: int, values: Mapping[str, Any]) -> None:
  """Appends a line to a JSON-lines file.

  The line is {"step": step, **values}; the file is created if absent. A single write per line, so readers see whole
  lines only, unless the machine stops. A last line without an end, left by such a stop, is cut off first.
  """
  line = json.dumps({"step": int(step), **to_jsonable(values)}, allow_nan=False) + "\n"
  path = Path(path)
  record, place = run_files.owner(path)
  if record is not None:
    record.claim(place)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Unbuffered, so that the line is a single write call.
  with open(path, "ab+", buffering=0) as file:
    size = file.seek(0, os.SEEK_END)
    if size:
      file.seek(size - 1)
      if file.read(1) != b"\n":
        size = file.truncate(_end_of_last_line(path))
    # The record has the first line only; lines appended later leave it as it is.
    if record is not None and size == 0:
      record.add(place, run_files.digest_of(line.encode()), grows=True)
    file.write(line.encode())
  if record is not None:
    record.written(place)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the records of a metrics file, oldest first.

  The result is [] without a file. A last line without an end is ignored.

  Raises:
    DamagedFileError: a line is not a JSON object with a "step"; the message has the line number.
  """
  path = Path(path)
  if not path.exists():
    return []
  records = []
  for number, line in enumerate(path.read_bytes()[:_end_of_last_line(path)].splitlines(), start=1):
    try:
      record = json.loads(line)
      if not isinstance(record["step"], int):
        raise TypeError
    except (ValueError, KeyError, TypeError) as error:
      raise DamagedFileError(f"{path}, line {number}: not a metrics record; delete the line to go on") from error
    records.append(record)
  return records


def truncate_metrics(path: str | os.PathLike, last_step: int) -> int:
  """Deletes the records after `last_step`.

  A resumed run writes those records again. Returns the number of remaining records.
  """
  if not Path(path).exists():
    return 0
  # With last_step 0 the run starts anew: the old file is not even read, so damage does no harm.
  kept = [r for r in read_metrics(path) if r["step"] <= last_step] if last_step else []
  with atomic_write(path, grows=True) as file:
    file.writelines((json.dumps(r) + "\n").encode() for r in kept)
  return len(kept)


def _end_of_last_line(path: Path) -> int:
  """Returns the number of bytes of all whole lines."""
  return path.read_bytes().rfind(b"\n") + 1
