"""Names and layouts: between checkpoints (torch) and Flax trees.

One rule carries all: a number in a dotted name joins the word before it (`down_blocks.0.conv1` is
`down_blocks_0/conv1`), and the last part says what kind of parameter it is. What the rule can't know stands in a small
table for each network: which modules are embeddings, and which buffers of old files carry no parameters.

  kind        checkpoint                    Flax
  conv        weight [O, I, H, W]           kernel [H, W, I, O]
  linear      weight [O, I]                 kernel [I, O]
  norm        weight [C]                    scale [C]
  embedding   weight [N, C]                 embedding [N, C]
  any         bias [C]                      bias [C]
"""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NameTable:
  """What is particular to one network.

  Attributes:
    ignored: checkpoint names of buffers that older files carry and that are no parameters.
    prefix: what every name in the checkpoint may lack (some writers leave a wrapper's name out).
  """
  ignored: frozenset[str] = frozenset()
  prefix: str = ""


UNET = NameTable()
CLIP_TEXT = NameTable(ignored=frozenset({"text_model.embeddings.position_ids", "embeddings.position_ids"}),
                      prefix="text_model.")

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def checkpoint_name(path: Path) -> str:
  """The name in a checkpoint of the parameter at a Flax path: ("down_blocks_0", "conv1", "kernel") and so on.

  Raises:
    ValueError: the leaf is of no known kind.
  """
  *modules, leaf = path
  if leaf not in _LEAF:
    raise ValueError(f"parameter {'/'.join(path)}: {leaf!r} is none of {', '.join(_LEAF)}")
  return ".".join([_split_number(module) for module in modules] + [_LEAF[leaf]])


def _split_number(module: str) -> str:
  # Modules that end in a number by nature: linear_1, linear_2 of the time embedding.
  if module in ("linear_1", "linear_2"):
    return module
  return re.sub(r"_(\d+)$", r".\1", module)


def to_flax(path: Path, array: np.ndarray) -> np.ndarray:
  """A checkpoint's array in the layout of the Flax parameter at `path`."""
  if path[-1] == "kernel" and array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  if path[-1] == "kernel" and array.ndim == 2:
    return array.T
  return array


def to_checkpoint(path: Path, array: np.ndarray) -> np.ndarray:
  """The inverse of `to_flax`."""
  if path[-1] == "kernel" and array.ndim == 4:
    return array.transpose(3, 2, 0, 1)
  if path[-1] == "kernel" and array.ndim == 2:
    return array.T
  return array


def checkpoint_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape in the checkpoint of a Flax parameter of the given shape."""
  return to_checkpoint(path, np.broadcast_to(np.zeros((), np.int8), shape)).shape


def checkpoint_names(paths: Mapping[Path, tuple[int, ...]]) -> dict[str, Path]:
  """Checkpoint name -> Flax path, for all parameters of a network given as {path: shape}."""
  return {checkpoint_name(path): path for path in paths}
