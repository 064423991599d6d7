"""The collectives of a compiled program, read from its text (HLO)."""
from __future__ import annotations

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}
# Matches the start of an asynchronous pair and never its `-done`, which would count the pair twice.
_OP = re.compile(rf"= (\([^=]*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
  """An operation between devices.

  Attributes:
    kind: one of KINDS.
    bytes: of its result on one device.
  """
  kind: str
  bytes: int


def collectives(program: str) -> list[Collective]:
  """Returns all operations between devices in a compiled program's `as_text()`, in order.

  An operation in a loop counts once. Of an asynchronous pair the start counts, with the bytes of the result alone.
  """
  operations = []
  for shapes, kind in _OP.findall(program):
    arrays = [_BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
              for dtype, dims in _ARRAY.findall(shapes) if dtype in _BYTES]
    operations.append(Collective(kind, sum(arrays)))
  return operations
