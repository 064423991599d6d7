"""Finds the stored members of a zip archive, as torch writes it, without unpacking anything.

The format is PKWARE's application note 6.3, with its 64-bit extension. Python's `zipfile` reads a directory of any size
into memory and accepts members that overlap; this reader does neither.
"""
from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
import struct

from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError

_END, _END_64, _LOCATOR_64, _ENTRY, _LOCAL = (
  b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04")
_LARGEST_COMMENT = 2**16
_FULL = 2**32 - 1
"""Value of a 32-bit field whose number is in the 64-bit extension."""


@dataclasses.dataclass(frozen=True)
class Member:
  """Where the bytes of a stored member begin in the archive, and how many there are."""
  offset: int
  size: int


def read_members(path: Path) -> dict[str, Member]:
  """Returns {name: where the bytes are} of a zip archive whose members are stored uncompressed.

  Raises:
    CheckpointError: the archive is truncated, compressed, encrypted or damaged, or two members overlap.
  """
  size = path.stat().st_size
  with open(path, "rb") as file:
    try:
      entries = list(_entries(_directory(file, size)))
      spans = [(start, *_data(file, size, start, stored)) for _, start, stored in entries]
    except (struct.error, ValueError) as error:
      raise CheckpointError(f"{path} ({size} bytes) is damaged or truncated, download it again: {error}") from error
  members = {name: Member(begin, end - begin) for (name, _, _), (_, begin, end) in zip(entries, spans)}
  if len(members) < len(entries):
    raise CheckpointError(f"{path} is damaged: a name stands twice in its directory")
  spans.sort()
  if any(end > start for (_, _, end), (start, _, _) in zip(spans, spans[1:])):
    raise CheckpointError(f"{path} is damaged: parts of the archive overlap")
  return members


def _directory(file, size: int) -> bytes:
  """Returns the bytes of the archive's directory.

  Raises:
    ValueError: there is none, or it lies outside of the file.
  """
  tail = min(size, _LARGEST_COMMENT + 22)
  file.seek(size - tail)
  block = file.read(tail)
  end = block.rfind(_END)
  if end < 0 or len(block) - end < 22:
    raise ValueError("the end of the archive is missing")
  length, start = struct.unpack_from("<II", block, end + 12)
  place = size - tail + end
  if _FULL in (length, start) and place >= 20:
    file.seek(place - 20)
    mark, _, record, _ = struct.unpack("<4sIQI", file.read(20))
    if mark != _LOCATOR_64 or record + 56 > place:
      raise ValueError("the end of the archive is missing")
    file.seek(record)
    values = struct.unpack("<4sQHHIIQQQQ", file.read(56))
    if values[0] != _END_64:
      raise ValueError("the end of the archive is missing")
    length, start = values[8:]
  if length > LARGEST_TEXT:
    raise ValueError(f"its directory should have {length} bytes, at most {LARGEST_TEXT} are read")
  if start + length > place:
    raise ValueError("its directory lies outside of the file")
  file.seek(start)
  return file.read(length)


def _entries(directory: bytes) -> Iterator[tuple[str, int, int]]:
  """Yields (name, where its header starts, size) of each member in the directory's bytes.

  Raises:
    ValueError: a member is compressed or encrypted, or the directory is damaged.
  """
  at = 0
  while at < len(directory):
    (mark, _, _, flags, method, _, _, _, packed, size, name_length, extra_length, comment, _, _, _,
     start) = struct.unpack_from("<4sHHHHHHIIIHHHHHII", directory, at)
    if mark != _ENTRY:
      raise ValueError("its directory is damaged")
    name = directory[at + 46:at + 46 + name_length].decode("utf-8")
    extra = directory[at + 46 + name_length:at + 46 + name_length + extra_length]
    at += 46 + name_length + extra_length + comment
    size, packed, start = _wide(extra, size, packed, start)
    if flags & 1:
      raise ValueError(f"{name[:80]!r} is encrypted")
    if method or size != packed:
      raise ValueError(f"{name[:80]!r} is compressed, which torch's files never are: unpack the archive, and make it "
                       "anew without compression (`zip -0`)")
    yield name, start, size


def _wide(extra: bytes, *fields: int) -> list[int]:
  """Returns the fields, those that are full replaced by the numbers of the 64-bit extension."""
  numbers, at = [], 0
  while at + 4 <= len(extra):
    kind, length = struct.unpack_from("<HH", extra, at)
    if kind == 1:
      body = extra[at + 4:at + 4 + length]
      numbers = list(struct.unpack_from(f"<{len(body) // 8}Q", body))
      break
    at += 4 + length
  if fields.count(_FULL) > len(numbers):
    raise ValueError("its directory is damaged")
  return [numbers.pop(0) if field == _FULL else field for field in fields]


def _data(file, size: int, start: int, stored: int) -> tuple[int, int]:
  """Returns where a member's bytes begin and end, after its own header, which is padded for alignment."""
  file.seek(start)
  header = file.read(30)
  if header[:4] != _LOCAL or len(header) < 30:
    raise ValueError("a part of the archive is not where its directory says")
  name_length, extra_length = struct.unpack_from("<HH", header, 26)
  begin = start + 30 + name_length + extra_length
  if begin + stored > size:
    raise ValueError("a part of the archive lies outside of the file")
  return begin, begin + stored
