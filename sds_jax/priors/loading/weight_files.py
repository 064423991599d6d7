"""Names of the files in which a component's folder has its weights: variants, shards and torch's archives."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
import re

from sds_jax.priors.loading.composed import Composed
from sds_jax.priors.loading.files import CheckpointError, is_there, read_json

VARIANTS = ("bf16", "fp16")
"""Variants of the weights, as named in the weight files."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of the names of torch's archives, of which only the tensors are read."""


def weight_files(folder: Path | Composed, stem: str, variant: str = "") -> list[Path]:
  """Returns the weight files of a component, shards in order, whether or not the shards exist.

  The given variant comes first. Without it, safetensors go before torch's archives, and of each the files without a
  variant before VARIANTS.

  Raises:
    CheckpointError: there are none, or a damaged index.
  """
  if isinstance(folder, Composed) and folder.stored:
    return [folder.stored.file]
  for name, kind in weight_names(stem, variant, ("", *VARIANTS)):
    whole = folder / variant_name(name, kind)
    if is_there(whole):
      return [whole]
    for index in index_names(name, kind):
      if is_there(folder / index):
        return _shards(folder / index)
  others = sorted(path.name for path in folder.iterdir() if path.suffix in (*PICKLES, ".msgpack", ".h5"))
  also = f", and {', '.join(others[:3])} is none of these" if others else ""
  raise CheckpointError(f"{folder} has no weights: expected {stem}.safetensors, {stem}.fp16.safetensors, shards with "
                        f"{stem}.safetensors.index.json, or {pickle_name(stem)}{also}")


def weight_names(stem: str, variant: str, others: Iterable[str]) -> list[tuple[str, str]]:
  """Returns (name of a component's weights without variant, variant) of all weights that are read, the first first.

  Args:
    stem: of the component.
    variant: the variant that was asked for, or "".
    others: variants in the order in which they are taken where none was asked for; "" is no variant.
  """
  names = (f"{stem}.safetensors", pickle_name(stem))
  return [(name, variant) for name in names if variant] + [(name, kind) for name in names for kind in others]


def pickle_name(stem: str) -> str:
  """Returns the name of a component's weights as torch's archive: diffusers keeps the stem, transformers does not."""
  return "pytorch_model.bin" if stem == "model" else f"{stem}.bin"


def _shards(index: Path) -> list[Path]:
  """Returns the files that an index of shards names, all beside the index; other places are refused."""
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise CheckpointError(f"{index} has no weight_map")
  # Names come from a downloaded file: none may lead out of the folder.
  for name in weight_map.values():
    if not isinstance(name, str) or name in ("", ".", "..") or set("/\\\0") & set(name):
      raise CheckpointError(f"{index}: weight_map names {str(name)[:80]!r}, expected the name of a file beside it")
  return [index.parent / name for name in sorted(set(weight_map.values()))]


def variant_name(name: str, variant: str) -> str:
  """Returns a variant's file name: ("a.safetensors", "fp16") -> "a.fp16.safetensors"; "" is no variant."""
  return re.sub(r"(\.[^.]+)$", rf".{variant}\1", name) if variant else name


def index_names(name: str, variant: str) -> tuple[str, ...]:
  """Returns the file names of the index of a variant's shards, by today's and by older writers.

  Args:
    name: of the file that the shards stand for, without variant: "model.safetensors".
    variant: "fp16", say; "" is no variant.
  """
  stem, suffix = name.rsplit(".", 1)
  # Older writers put the variant's name at another place.
  today = variant_name(f"{name}.index.json", variant)
  return (today, f"{stem}.{variant}.{suffix}.index.json") if variant else (today,)
