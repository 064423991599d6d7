"""Names and layouts of parameters, between checkpoints (torch) and Flax trees.

One rule carries all: a number in a dotted name joins the word before it (`down_blocks.0.conv1` is
`down_blocks_0/conv1`), and the last part says what kind of parameter it is. What the rule can't know stands in a small
table for each network.

  kind        checkpoint                    Flax
  conv        weight [O, I, H, W]           kernel [H, W, I, O]
  linear      weight [O, I]                 kernel [I, O]
  norm        weight [C]                    scale [C]
  embedding   weight [N, C]                 embedding [N, C]
  any         bias [C]                      bias [C]
  pooling     positional_embedding [1, C]   positional_embedding [1, C]
  class       class_embedding [C]           class_embedding [C]
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
from fnmatch import fnmatchcase
import re

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NameTable:
  """What the rule doesn't know of one network.

  Attributes:
    numbered: modules whose own name ends in a number, which stays with it.
    prefix: wrapper's name that some writers leave out; put in front of names that lack it.
    ignored: patterns (* stands for anything) of what files hold beside the network's parameters: buffers of older
      files, other networks of the same model.
    aliases: {module's name in older or others' files: its name here}; only read, never written.
    renamed: {parameter's name by the rule: its name in checkpoints}.
    tied: {copy: original} where files may hold a parameter twice; the copy is read only where the original is missing,
      and never written.
  """
  numbered: frozenset[str] = frozenset()
  prefix: str = ""
  ignored: frozenset[str] = frozenset()
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


UNET = NameTable(numbered=frozenset({"linear_1", "linear_2"}))
CLIP_VISION = NameTable(ignored=frozenset({"vision_model.embeddings.position_ids"}))
LINEAR = NameTable(aliases={"proj": "projection"})
CLIP_TEXT = NameTable(prefix="text_model.", ignored=frozenset({"text_model.embeddings.position_ids"}))
VAE = NameTable(aliases={"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"})
T5 = NameTable(
  numbered=frozenset({"wi_0", "wi_1"}), ignored=frozenset({"decoder.*", "lm_head.weight"}),
  renamed={"encoder.relative_attention_bias.weight":
             "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
  tied={"encoder.embed_tokens.weight": "shared.weight"})

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias",
         "positional_embedding": "positional_embedding", "class_embedding": "class_embedding"}


def checkpoint_name(path: Path, table: NameTable) -> str:
  """("down_blocks_0", "conv1", "kernel") -> "down_blocks.0.conv1.weight".

  Raises:
    ValueError: the leaf is of no known kind.
  """
  *modules, leaf = path
  if leaf not in _LEAF:
    raise ValueError(f"parameter {'/'.join(path)}: {leaf!r} is none of {', '.join(_LEAF)}")
  dotted = [module if module in table.numbered else re.sub(r"_(\d+)$", r".\1", module) for module in modules]
  name = ".".join([*dotted, _LEAF[leaf]])
  return table.renamed.get(name, name)


def full_name(name: str, table: NameTable) -> str:
  """A name as a file has it, with the table's prefix in front and older names replaced by today's."""
  name = ".".join(table.aliases.get(part, part) for part in name.split("."))
  return name if name.startswith(table.prefix) else table.prefix + name


def is_ignored(name: str, table: NameTable) -> bool:
  """Whether a full name is none of the network's parameters."""
  return any(fnmatchcase(name, pattern) for pattern in table.ignored)


def as_linear(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of a tensor in a file; [O, I] for [O, I, 1, 1], a linear layer that older files have as a convolution."""
  return shape[:2] if len(wanted) == 2 and shape[2:] == (1, 1) else shape


def flax_paths(paths: Iterable[Path], table: NameTable) -> dict[str, Path]:
  """{name in the checkpoint: Flax path} for all parameters of a network.

  Raises:
    ValueError: two paths have the same name, so the table lacks something.
  """
  by_name: dict[str, Path] = {}
  for path in paths:
    name = checkpoint_name(path, table)
    if name in by_name:
      raise ValueError(f"{'/'.join(by_name[name])} and {'/'.join(path)} are both {name}")
    by_name[name] = path
  return by_name


def to_flax(path: Path, array: np.ndarray) -> np.ndarray:
  """A checkpoint's array in the layout of the Flax parameter at `path` (a view)."""
  if path[-1] != "kernel":
    return array
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_checkpoint(path: Path, array: np.ndarray) -> np.ndarray:
  """The inverse of `to_flax`."""
  if path[-1] != "kernel":
    return array
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def checkpoint_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that a Flax parameter of the given shape has in the checkpoint."""
  return to_checkpoint(path, np.broadcast_to(np.zeros((), np.int8), shape)).shape
