"""Files that are whole or absent: atomic writes, JSON, folder names from prompts, and the metrics log of a run."""
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

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)$")  # names that Windows keeps for devices


class DamagedFileError(ValueError):
  """A file of a run that does not hold what was written into it; the message names it and says how to mend it."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
  """Yields a temporary path beside `path` (same suffix) that becomes `path` when the block ends well.

  For writers that want a name. When the block raises, the temporary file is removed and whatever stood under the final
  name is untouched. The data is flushed to disk before the rename, so a power cut leaves the old file or the new one.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{uuid.uuid4().hex[:12]}.tmp{path.suffix}"
  try:
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Yields a binary file whose content appears under `path` only when the block ends well (see `atomic_path`)."""
  with atomic_path(path) as temporary, open(temporary, "xb") as file:
    yield file
    file.flush()


def to_jsonable(value: Any) -> Any:
  """`value` as what JSON can hold: array scalars to Python's, arrays to lists, NaN and infinities to None."""
  if isinstance(value, Mapping):
    return {str(k): to_jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_jsonable(v) for v in value]
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  array = np.asarray(value)
  if array.dtype.kind == "V":  # bfloat16 and its like are void types to numpy
    array = array.astype(np.float64)
  return to_jsonable(array.tolist()) if array.dtype.kind in "biufU" else str(value)


def write_json(data: Any, path: str | os.PathLike) -> Path:
  """Writes `data` (through `to_jsonable`) as indented UTF-8 JSON, atomically; returns the path."""
  text = json.dumps(to_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False)
  with atomic_write(path) as file:
    file.write(text.encode("utf-8", "replace") + b"\n")
  return Path(path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The object in a JSON file that `write_json` has written; {} where there is no file.

  Raises:
    DamagedFileError: the file holds something else.
  """
  path = Path(path)
  if not path.exists():
    return {}
  try:
    data = json.loads(path.read_bytes())
  except ValueError as error:
    raise DamagedFileError(f"{path} is damaged ({error}); delete it, and the command makes it again") from error
  if not isinstance(data, dict):
    raise DamagedFileError(f"{path} is damaged (no JSON object); delete it, and the command makes it again")
  return data


def prompt_slug(prompt: str, limit: int = 60) -> str:
  """A folder name made from a prompt: lower-case ASCII words joined by '-', at most `limit` characters, never empty.

  Only [a-z0-9-] comes out, so no separators, dots, newlines or emoji. When letters or digits were lost (a long prompt,
  another script), eight digits of the prompt's SHA-256 keep two prompts apart.
  """
  folded = unicodedata.normalize("NFKD", prompt)
  ascii_text = folded.encode("ascii", "ignore").decode().lower()
  slug = "-".join(re.findall(r"[a-z0-9]+", ascii_text))
  lost_letters = any(ord(c) > 127 and c.isalnum() for c in folded)
  if slug and len(slug) <= limit and not lost_letters and not _RESERVED.match(slug):
    return slug
  digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
  room = limit - len(digest) - 1
  if len(slug) > room:
    head = slug[:room + 1]
    slug = head.rsplit("-", 1)[0] if "-" in head else head[:room]  # cut between words where there are any
  return f"{slug or 'object'}-{digest}"


def append_metrics(path: str | os.PathLike, step: int, values: Mapping[str, Any]) -> None:
  """Adds one line {"step": step, **values} to a JSON-lines file (created when absent).

  The line goes out in one write, so a reader never sees half of it unless the machine stops; what such a stop left
  behind (a last line without its end) is cut off first.
  """
  line = json.dumps({"step": int(step), **to_jsonable(values)}, allow_nan=False) + "\n"
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "ab+", buffering=0) as file:
    size = file.seek(0, os.SEEK_END)
    if size:
      file.seek(size - 1)
      if file.read(1) != b"\n":
        file.truncate(_end_of_last_line(path))
    file.write(line.encode())


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The records of a metrics file, oldest first; [] when there is no file.

  A torn last line is left out.

  Raises:
    DamagedFileError: a whole line that is not a JSON object with a "step", naming its number.
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
      raise DamagedFileError(f"{path}, line {number}: not a metrics record; delete that line to go on") from error
    records.append(record)
  return records


def truncate_metrics(path: str | os.PathLike, last_step: int) -> int:
  """Keeps the records with step <= `last_step` (what a resumed run will not write again); returns how many stay."""
  if not Path(path).exists():
    return 0
  kept = [r for r in read_metrics(path) if r["step"] <= last_step] if last_step else []
  with atomic_write(path) as file:
    file.writelines((json.dumps(r) + "\n").encode() for r in kept)
  return len(kept)


def _end_of_last_line(path: Path) -> int:
  """Bytes up to and with the last newline."""
  return path.read_bytes().rfind(b"\n") + 1
