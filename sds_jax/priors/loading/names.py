"""Translates names and layouts of parameters between checkpoints (torch) and Flax trees.

One rule covers all networks: a number in a dotted name joins the word before (`down_blocks.0.conv1` is
`down_blocks_0/conv1`), and the last part says which kind of parameter follows. A small table for each network lists the
exceptions.

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
  """The exceptions from the rule in one network.

  Attributes:
    numbered: modules whose names end in a number; the number stays part of the name.
    prefix: name of a wrapper that some writers omit; added to names without the prefix.
    beside: modules that stand beside the wrapper; the prefix is not added to their names.
    ignored: patterns (* matches anything) of tensors in the files that are no parameters of the network: buffers of
      older files, other networks of the same model.
    aliases: {module's name in older or foreign files: module's name here}; for reading only.
    renamed: {parameter's name by the rule: parameter's name in checkpoints}.
    tied: {copy: original} where files may hold a parameter twice; the copy is read only where the original is missing,
      and is never written.
  """
  numbered: frozenset[str] = frozenset()
  prefix: str = ""
  beside: frozenset[str] = frozenset()
  ignored: frozenset[str] = frozenset()
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


UNET = NameTable(numbered=frozenset({"linear_1", "linear_2"}))
CLIP_VISION = NameTable(ignored=frozenset({"vision_model.embeddings.position_ids"}))
LINEAR = NameTable(aliases={"proj": "projection"})
CLIP_TEXT = NameTable(prefix="text_model.", beside=frozenset({"text_projection"}),
                      ignored=frozenset({"text_model.embeddings.position_ids"}))
VAE = NameTable(aliases={"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"})
T5 = NameTable(
  numbered=frozenset({"wi_0", "wi_1"}), ignored=frozenset({"decoder.*", "lm_head.weight"}),
  renamed={"encoder.relative_attention_bias.weight":
             "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
  tied={"encoder.embed_tokens.weight": "shared.weight"})

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias",
         "positional_embedding": "positional_embedding", "class_embedding": "class_embedding"}


def checkpoint_name(path: Path, table: NameTable) -> str:
  """Returns a parameter's name: ("down_blocks_0", "conv1", "kernel") -> "down_blocks.0.conv1.weight".

  Raises:
    ValueError: the last part of the path is no known kind of parameter.
  """
  *modules, leaf = path
  if leaf not in _LEAF:
    raise ValueError(f"parameter {'/'.join(path)}: {leaf!r} is none of {', '.join(_LEAF)}")
  # torch's lists have numbers as names, which Flax joins by an underscore.
  dotted = [module if module in table.numbered else re.sub(r"_(\d+)$", r".\1", module) for module in modules]
  name = ".".join([*dotted, _LEAF[leaf]])
  return table.renamed.get(name, name)


def full_name(name: str, table: NameTable) -> str:
  """Returns a name of a file with the table's prefix added and aliases replaced."""
  name = ".".join(table.aliases.get(part, part) for part in name.split("."))
  return name if name.startswith(table.prefix) or name.split(".")[0] in table.beside else table.prefix + name


def is_ignored(name: str, table: NameTable) -> bool:
  """Returns whether a full name matches one of the table's ignored patterns."""
  return any(fnmatchcase(name, pattern) for pattern in table.ignored)


def as_linear(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a tensor's shape; [O, I] for [O, I, 1, 1] where a linear layer is wanted.

  Older files store some linear layers as convolutions.
  """
  return shape[:2] if len(wanted) == 2 and shape[2:] == (1, 1) else shape


def flax_paths(paths: Iterable[Path], table: NameTable) -> dict[str, Path]:
  """Returns {name in the checkpoint: Flax path} of all parameters of a network.

  Raises:
    ValueError: two paths have the same name, so the table lacks an entry.
  """
  by_name: dict[str, Path] = {}
  for path in paths:
    name = checkpoint_name(path, table)
    if name in by_name:
      raise ValueError(f"{'/'.join(by_name[name])} and {'/'.join(path)} are both {name}")
    by_name[name] = path
  return by_name


def to_flax(path: Path, array: np.ndarray) -> np.ndarray:
  """Returns a view of a checkpoint's array in the layout of the Flax parameter at `path`."""
  if path[-1] != "kernel":
    return array
  # torch: [out, in, height, width] and [out, in]. Flax: [height, width, in, out] and [in, out].
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_checkpoint(path: Path, array: np.ndarray) -> np.ndarray:
  """Returns a view of a Flax parameter in the checkpoint's layout, the inverse of `to_flax`."""
  if path[-1] != "kernel":
    return array
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def checkpoint_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape in the checkpoint of a Flax parameter of the given shape."""
  # An array with strides 0 gives the shape without memory.
  return to_checkpoint(path, np.broadcast_to(np.zeros((), np.int8), shape)).shape
