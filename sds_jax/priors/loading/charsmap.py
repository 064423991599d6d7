"""Checks the table of character replacements of a SentencePiece normalizer before a library walks it.

The table (`precompiled_charsmap`) is a double array (doi:10.1109/32.31365, as darts-clone stores it) and a blob of
replacements, texts that end with a zero byte. The `tokenizers` library follows its indices unchecked.
"""
from __future__ import annotations

import struct

import numpy as np

LARGEST = 2**21
"""Upper limit of the bytes of a table; published ones have a quarter of a million."""
_CHUNK = 4096


def check_charsmap(table: bytes) -> None:
  """Raises ValueError unless every walk through the table stays inside and ends at a whole text.

  Args:
    table: size of the double array in bytes (32 bits, little-endian), its units, and the blob.
  """
  if len(table) > LARGEST:
    raise ValueError(f"its table of characters has {len(table)} bytes, at most {LARGEST} are read")
  size = struct.unpack("<I", table[:4])[0] if len(table) >= 4 else 0
  if not size or size % 4 or 4 + size > len(table):
    raise ValueError("its table of characters is cut off")
  units = np.frombuffer(table, "<u4", size // 4, 4)
  blob = table[4 + size:]
  # Raises UnicodeDecodeError, a ValueError, for damaged texts.
  blob.decode("utf-8")
  starts = np.append((np.frombuffer(blob, np.uint8) & 0xC0) != 0x80, True)  # the first bytes of characters, and the end
  seen = np.zeros(len(units), bool)
  front = np.array([0])
  while front.size:
    seen[front] = True
    children = []
    # In chunks, since each unit has 255 possible children.
    for chunk in np.split(front, range(_CHUNK, front.size, _CHUNK)):
      first = chunk ^ _offset(units[chunk])
      # A child is at `first` with its last 8 bits changed by the byte, so at most at first | 255.
      if ((first | 255) >= len(units)).any():
        raise ValueError("its table of characters points outside of itself")
      leaf = chunk[(units[chunk] >> 8) & 1 == 1]
      values = units[leaf ^ _offset(units[leaf])] & 0x7FFFFFFF
      if (values > len(blob)).any() or not starts[values].all():
        raise ValueError("its table of characters points outside of its texts")
      places = first[:, None] ^ np.arange(1, 256)
      # A unit is a child by a byte where its label is that byte (bit 31 marks values, which are no children).
      children.append(places[(units[places] & 0x800000FF) == np.arange(1, 256)])
    reached = np.unique(np.concatenate(children))
    front = reached[~seen[reached]]


def _offset(unit: np.ndarray) -> np.ndarray:
  """Returns the distance from a unit to its children, by exclusive or."""
  return ((unit >> 10) << ((unit & 512) >> 6)).astype(np.int64)
