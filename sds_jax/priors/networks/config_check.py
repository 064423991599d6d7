"""Reads the supported options of a diffusers config.json and refuses all others."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
  """The supported options of one network's config.json.

  Attributes:
    network: name of the network, for messages.
    free: fields of the network that accept any value of the right type.
    choices: {field of the network: supported values}.
    choices_per_block: {field of the network: supported values of each entry}, for lists with one entry a block.
    neutral: {key that is no field: values under which the key changes nothing}; other values are refused.
    no_effect: keys without effect on the function.
  """
  network: str
  free: frozenset[str]
  choices: Mapping[str, tuple[Any, ...]]
  choices_per_block: Mapping[str, tuple[str, ...]]
  neutral: Mapping[str, tuple[Any, ...]]
  no_effect: frozenset[str] = frozenset()


def read_fields(options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the network's fields from a parsed config.json; lists become tuples, keys that begin with _ are dropped.

  Raises:
    ValueError: a value is not supported; the message has the key, the value and the supported values.
  """
  fields = {}
  for key, value in config.items():
    if key.startswith("_") or key in options.no_effect:
      continue
    if key in options.neutral:
      _check_choice(options, key, value, value, options.neutral[key])
      continue
    if key in options.choices:
      _check_choice(options, key, value, value, options.choices[key])
    elif key in options.choices_per_block:
      if not isinstance(value, (list, tuple)):
        raise ValueError(f"{options.network} config: {key}={value!r} should be a list, one entry a block")
      for kind in value:
        _check_choice(options, key, value, kind, options.choices_per_block[key])
    elif key not in options.free:
      raise ValueError(f"{options.network} config: {key}={value!r} is not a known option")
    fields[key] = tuple(value) if isinstance(value, list) else value
  return fields


def _check_choice(options: Options, key: str, value: Any, part: Any, choices: tuple[Any, ...]) -> None:
  if part not in choices:
    raise ValueError(f"{options.network} config: {key}={value!r} is not supported; "
                     f"supported: {', '.join(map(repr, choices))}")
