"""Variants of weight files: `<stem>.<variant>.safetensors`, such as fp16, fp16_ema, ema or non_ema."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
import re

from sds_jax.priors.loading.checkpoint import Component, reads_configs_only
from sds_jax.priors.loading.files import CheckpointError

_SUFFIX = r"\.(?:safetensors|bin)(?:\.index(?:\.(?P<old_index>[\w-]+))?\.json)?"


def variants_of(names: Iterable[str], stem: str) -> list[str]:
  """Returns the variants of a network among the names of files, in alphabetical order; "" for files without a variant.

  >>> variants_of(["model.safetensors", "model.fp16_ema.safetensors", "model.fp16-00001-of-00002.safetensors"], "model")
  ['', 'fp16', 'fp16_ema']
  """
  whole = re.compile(rf"{re.escape(stem)}(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?{_SUFFIX}")
  matches = filter(None, map(whole.fullmatch, names))
  # Older writers put the variant of an index of shards before "json".
  return sorted({match["variant"] or match["old_index"] or "" for match in matches})


def names_inside(folder: Path, components: Iterable[str]) -> dict[str, list[str]]:
  """Returns {component's folder: names of its files} of a prior's folder."""
  return {name: [path.name for path in (folder / name).iterdir()] if (folder / name).is_dir() else []
          for name in components}


def variant_problem(inside: Mapping[str, Iterable[str]], components: Mapping[str, Component], variant: str) -> str:
  """Returns why a variant cannot be chosen, or "".

  The first network must have the variant. The others are read without the variant where they lack it.

  Args:
    inside: {component's folder: names of its files}.
    components: {component's folder: component}, the U-Net first.
    variant: the variant that was asked for; "" can always be chosen.
  """
  first, component = next(iter(components.items()))
  variants = variants_of(inside[first], component.stem)
  if not variant or variant in variants:
    return ""
  others = ", ".join(repr(name) for name in variants if name)
  return (f"{first}/ has no variant {variant!r} of its weights (no {component.stem}.{variant}.safetensors); set "
          f"config.prior.variant to {f'one of {others}, or ' if others else ''}'' for the files without a variant")


def check_variant(folder: Path, components: Mapping[str, Component], variant: str) -> None:
  """Raises CheckpointError when a prior's folder lacks the variant.

  Under `checkpoint.configs_only` the weights may be absent, and nothing is checked.
  """
  if not variant or reads_configs_only():
    return
  if problem := variant_problem(names_inside(folder, components), components, variant):
    raise CheckpointError(f"{folder}: {problem}")
