"""Checks the values of a config.json: supported options, types and ranges, before anything is built."""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

MAX_BLOCKS = 10
"""Largest number of blocks of a U-Net or autoencoder; published ones have up to seven."""
MAX_LAYERS = 256
"""Largest number of layers of a network, since tracing takes milliseconds a layer; published ones have up to 70."""
MAX_WIDTH = 2**16
MAX_TOKENS = 2**20
"""Largest number of entries of a vocabulary."""
MAX_SIDE = 2**13
"""Largest height and width of images and latents, pixels."""


def shown(value: Any) -> str:
  """Returns a value for a message: its repr, cut to 80 characters."""
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:76]} ..."


@dataclasses.dataclass(frozen=True)
class ValueRule:
  """The legal values of a key.

  Attributes:
    words: description for messages.
    test: (value) -> whether the value is legal.
  """
  words: str
  test: Callable[[Any], bool]


TEXT = ValueRule("a text", lambda value: isinstance(value, str))
FLAG = ValueRule("true or false", lambda value: type(value) is bool)


def whole(lowest: int, highest: int) -> ValueRule:
  """Returns the whole numbers from `lowest` to `highest`."""
  # type() and not isinstance: JSON's true is a bool, which is an int to Python.
  return ValueRule(f"a whole number from {lowest} to {highest}",
                   lambda value: type(value) is int and lowest <= value <= highest)


def number(lowest: float = -math.inf, highest: float = math.inf) -> ValueRule:
  """Returns the finite numbers above `lowest` and below `highest`."""
  words = "a number" + "".join(f" {word} {limit:g}" for word, limit in (("above", lowest), ("below", highest))
                               if math.isfinite(limit))
  return ValueRule(words, lambda value: type(value) in (int, float) and -math.inf < value < math.inf
                   and lowest < value < highest)


def optional(legal: ValueRule) -> ValueRule:
  """Returns the values of `legal`, and null."""
  return ValueRule(f"{legal.words}, or null", lambda value: value is None or legal.test(value))


def every(legal: ValueRule) -> ValueRule:
  """Returns non-empty lists of at most MAX_BLOCKS values of `legal`."""
  return ValueRule(f"a list of 1 to {MAX_BLOCKS} values, each {legal.words}", lambda value: (
    isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_BLOCKS and all(map(legal.test, value))))


def one_or_every(legal: ValueRule) -> ValueRule:
  """Returns the values of `legal`, and lists of such values."""
  listed = every(legal)
  return ValueRule(f"{legal.words}, or a list of such", lambda value: legal.test(value) or listed.test(value))


def check_values(network: str, config: Mapping[str, Any], legal: Mapping[str, ValueRule]) -> None:
  """Raises ValueError for the first value of `config` that is not legal; keys that are not in `legal` are skipped.

  Args:
    network: name of the network, for the message.
    config: the parsed config.json.
    legal: {key: legal values}.
  """
  for key in config:
    if key in legal and not legal[key].test(config[key]):
      raise ValueError(f"{network} config: {key}={shown(config[key])} is not supported; supported: {legal[key].words}")


def check_choice(network: str, key: str, value: Any, choices: Mapping[Any, Any] | tuple[Any, ...],
                 whole_value: Any = None) -> None:
  """Raises ValueError unless `value` is one of `choices`; `whole_value` is the list that the value is a part of."""
  # A list of a JSON file is not hashable and may not be looked up in a mapping.
  if value not in tuple(choices):
    raise ValueError(f"{network} config: {key}={shown(value if whole_value is None else whole_value)} is not "
                     f"supported; supported: {', '.join(map(repr, choices))}")


@dataclasses.dataclass(frozen=True)
class Options:
  """The supported options of one network's config.json.

  Attributes:
    network: name of the network, for messages.
    free: {field of the network: legal values}.
    choices: {field of the network: supported values}.
    choices_per_block: {field of the network: supported values of each entry}, for lists with one entry a block.
    neutral: {key that is no field: values under which the key changes nothing}; other values are refused.
    no_effect: keys without effect on the function.
  """
  network: str
  free: Mapping[str, ValueRule]
  choices: Mapping[str, tuple[Any, ...]]
  choices_per_block: Mapping[str, tuple[str, ...]]
  neutral: Mapping[str, tuple[Any, ...]]
  no_effect: frozenset[str] = frozenset()


def read_fields(options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the network's fields from a parsed config.json; lists become tuples, keys that begin with _ are dropped.

  Raises:
    ValueError: a value is not supported; the message has the key, the value and the supported values.
  """
  check_values(options.network, config, options.free)
  fields = {}
  for key, value in config.items():
    if key.startswith("_") or key in options.no_effect:
      continue
    if key in options.neutral:
      check_choice(options.network, key, value, options.neutral[key])
      continue
    if key in options.choices:
      check_choice(options.network, key, value, options.choices[key])
    elif key in options.choices_per_block:
      if not isinstance(value, (list, tuple)) or len(value) > MAX_BLOCKS:
        raise ValueError(f"{options.network} config: {key}={shown(value)} should be a list, one entry a block, of at "
                         f"most {MAX_BLOCKS}")
      for kind in value:
        check_choice(options.network, key, kind, options.choices_per_block[key], value)
    # Unknown keys are refused: an option that is ignored would give another function without a word.
    elif key not in options.free:
      raise unknown_option(options.network, key, value)
    fields[key] = tuple(value) if isinstance(value, list) else value
  return fields


def unknown_option(network: str, key: str, value: Any) -> ValueError:
  """Returns the error of a key that the network does not know."""
  return ValueError(f"{network} config: {key[:80]}={shown(value)} is not a known option")


def check_layers(network: str, layers: int, **values: Any) -> None:
  """Raises ValueError when a network has more than MAX_LAYERS layers; `values` are the keys that decide the number."""
  if layers > MAX_LAYERS:
    keys = " with ".join(f"{key}={shown(value)}" for key, value in values.items())
    raise ValueError(f"{network} config: {keys} makes {layers} layers; supported: at most {MAX_LAYERS}")
