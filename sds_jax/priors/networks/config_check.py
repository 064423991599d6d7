"""Reading the options of a diffusers config.json: those that a network has, and a clear refusal of all others."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
  """What the config.json of one network may say.

  Attributes:
    network: its name, for messages.
    free: keys that any value of the right type is good for.
    choices: keys that are fields of the network, with the values that it can do.
    choices_per_block: the same for lists with one entry a block.
    neutral: keys that are no fields: only the values under which they change nothing are accepted.
    no_effect: keys without effect on the function.
  """
  network: str
  free: frozenset[str]
  choices: Mapping[str, tuple[Any, ...]]
  choices_per_block: Mapping[str, tuple[str, ...]]
  neutral: Mapping[str, tuple[Any, ...]]
  no_effect: frozenset[str] = frozenset()


def read_fields(options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
  """The network's fields from a parsed config.json; lists become tuples, keys that begin with _ are left out.

  Raises:
    ValueError: naming the key, its value and what is supported.
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
