"""Mistakes in JSON, text and weights files, for the fuzz drill: one value, one byte or the whole file is wrong."""
from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 10**9, 2**63, 10**30, -10**30, 1.5, -0.5, 1e-30, 1e308, float("nan"),
    float("inf"), "", " ", "x", "x" * 10_000, "\ud800", "\u202e", "../x", "/etc/passwd", "1", [], [1], [[]], [None],
    [1] * 1000, {}, {"a": 1}, {"": {}})
"""Values in place of another."""

_CONTENTS: tuple[bytes, ...] = (
    b"", b"\0" * 64, b"{", b"[" * 100_000, b"null", b"3", b'"x"', b"[]", b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b'{"a": ' + b"9" * 5000 + b"}", b"<!DOCTYPE html><html></html>", b"NaN", b'{"a": 1}\n{"a": 2}',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", bytes(range(256)) * 8)
"""Contents in place of a whole file."""


def spoil_folder(folder: Path, rng: random.Random, keep: tuple[str, ...] = ()) -> None:
  """Spoils one file of a folder, or the folder's list of files.

  Args:
    folder: with files of JSON, JSON lines, text, safetensors and others; changed.
    rng: chooses file and mistake.
    keep: names of files that stay as they are.
  """
  paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in keep)
  # Half of the tries change a value, since whole files of another kind are refused early.
  values = [path for path in paths if path.suffix in (".json", ".jsonl", ".safetensors", ".txt")]
  if values and rng.random() < 0.6:
    spoil_value(rng.choice(values), rng)
  else:
    spoil_file(rng.choice(paths), rng)


def spoil_value(path: Path, rng: random.Random) -> None:
  """Changes one value of a JSON or safetensors file, or one line of a text file."""
  if path.suffix == ".json":
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(_changed(data, rng)), encoding="utf-8")
  elif path.suffix == ".safetensors":
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(_changed(json.loads(content[8:8 + length]), rng)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length:])
  else:
    lines = path.read_text(encoding="utf-8").split("\n")
    place = rng.randrange(len(lines))
    lines[place:place + 1] = rng.choice([[], [lines[place]] * 2, ["x"], ["\u202e \0"], ["x " * 5000], [lines[0]]])
    path.write_text("\n".join(lines), encoding="utf-8")


def spoil_file(path: Path, rng: random.Random) -> None:
  """Cuts off, overwrites, removes or replaces a file; a replacement may be a folder, a link or a pipe."""
  content = path.read_bytes()
  kind = rng.randrange(8)
  if kind <= 1:
    path.write_bytes(content[:rng.randrange(len(content) + 1)])
  elif kind == 2:
    # Not-a-number in float32, and in weights of other types some value.
    place = rng.randrange(max(1, len(content) - 64))
    path.write_bytes(content[:place] + b"\xff" * 64 + content[place + 64:])
  elif kind <= 4:
    path.write_bytes(rng.choice(_CONTENTS))
  else:
    path.unlink()
    if kind == 5:
      rng.choice([lambda: path.mkdir(), lambda: os.mkfifo(path)])()
    elif kind == 6:
      path.symlink_to(rng.choice(["nothing", path.name, "/dev/zero", ".."]))


def _changed(data: Any, rng: random.Random) -> Any:
  """Returns JSON data with one value changed, removed, added or repeated."""
  places = list(_places(data))
  if not places:
    return rng.choice(VALUES)
  container, key = rng.choice(places)
  kind = rng.random()
  if kind < 0.7:
    container[key] = rng.choice(VALUES)
  elif kind < 0.8:
    del container[key]
  elif isinstance(container, dict):
    container[rng.choice(["x", "", "_class_name", "a" * 1000, str(key).upper()])] = rng.choice(VALUES)
  else:
    container.insert(key, container[key])
  return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
  """Yields (container, key) of every value in JSON data."""
  if isinstance(data, (dict, list)):
    for key in (data if isinstance(data, dict) else range(len(data))):
      yield data, key
      yield from _places(data[key])
