"""Typed settings: dataclasses whose fields carry default, legal range and meaning, and the walker that reads them.

A group of settings is a frozen dataclass. Each field is declared on one line:

    @dataclasses.dataclass(frozen=True)
    class Camera:
      '''Where the views are drawn from.'''
      distance: Span = setting((2.4, 3.0), span(1.0, 100.0), "distance to the origin in world units")
      lens: Lens = group(Lens)

      def relations(self, path: str) -> Iterator[str]:
        if ...: yield f"{path}.distance={self.distance!r} ..."

`defaults` turns such a tree into a `ConfigDict` for config files and flags; `read` checks a `ConfigDict` and returns
the tree; `describe` lists the fields for the documentation.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from ml_collections import ConfigDict, FieldReference

from sds_jax import names

T = TypeVar("T")

Scheduled: TypeAlias = float | tuple[tuple[float, float], ...]
"""A number v, or points ((p0, v0), (p1, v1), ...), linear between the fractions p of the run."""

Span: TypeAlias = tuple[float, float]
"""(smallest, largest)."""

AUTO = "auto"
"""The value of a setting that is left to another setting's choice."""


class ConfigError(ValueError):
  """A setting that cannot be used. The message is one line: setting, value, legal values, remedy."""


class Legal(NamedTuple):
  """The legal values of a setting.

  Attributes:
    test: returns whether a value, which has been through `convert`, is legal. May raise TypeError or ValueError for no.
    words: names the legal values; completes the sentence "it must be ...". A function where the names may grow.
    convert: brings a value into its final form.
    loose: whether values of several types are legal, so that the type of the default does not bind.
    text: whether values must be valid text; folders need not be.
    scheduled: whether the value is a scheduled number, which may change over the run.
  """
  test: Callable[[Any], bool]
  words: str | Callable[[], str]
  convert: Callable[[Any], Any] = lambda value: value
  loose: bool = False
  text: bool = True
  scheduled: bool = False

  def describe(self) -> str:
    """Returns the legal values in words, as of now."""
    return self.words() if callable(self.words) else self.words


def finite(value: Any) -> bool:
  """Returns whether a value is a finite number, and no bool."""
  # bool is a subclass of int, so True would pass for 1.
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(low: float, high: float = math.inf, words: str = "") -> Legal:
  """Allows finite numbers within limits; `words` follow the limits in errors."""
  described = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"
  return Legal(lambda v: finite(v) and low <= v <= high, described + words)


def above(low: float, high: float = math.inf, words: str = "") -> Legal:
  """Allows finite numbers above `low`, up to `high`."""
  described = f"a number above {low:g}" + (f", up to {high:g}" if math.isfinite(high) else "")
  return Legal(lambda v: finite(v) and low < v <= high, described + words)


def below(low: float, high: float, words: str = "") -> Legal:
  """Allows finite numbers of at least `low` and below `high`."""
  return Legal(lambda v: finite(v) and low <= v < high, f"a number from {low:g} to below {high:g}{words}")


def whole(low: int, high: int = 10**9, words: str = "") -> Legal:
  """Allows whole numbers within limits; without `high` errors name the lower limit only."""
  described = f"a whole number from {low} to {high}" if high != 10**9 else f"a whole number of at least {low}"
  # Types are checked before ranges (`_same_type`), so that only the limits are left here.
  return Legal(lambda v: low <= v <= high, described + words)


def one_of(choices: Iterable[str], words: str = "") -> Legal:
  """Allows one of the choices; a mutable `choices` may grow later."""
  return Legal(lambda v: v in choices, lambda: "one of " + ", ".join(choices) + words)


def switch() -> Legal:
  """Allows True and False."""
  return Legal(lambda v: isinstance(v, bool), "True or False")


def sentence(longest: int = 10_000, words: str = "", empty: bool = True) -> Legal:
  """Allows text of at most `longest` characters; `empty` allows blank text."""
  described = f"a text of at most {longest:,} characters" if empty else f"a text of 1 to {longest:,} characters"
  return Legal(lambda v: len(v) <= longest and (empty or bool(v.strip())), described + words)


def folder(words: str = "") -> Legal:
  """Allows any path of a folder, also bytes that are no text; `~` is the home folder."""
  return Legal(lambda v: isinstance(v, str), "the path of a folder" + words, expand_home, text=False)


def file(words: str = "", empty: bool = True) -> Legal:
  """Allows any path of a file that is text and has no NUL; `empty` allows blank text; `~` is the home folder."""
  return Legal(lambda v: (empty or bool(v.strip())) and "\0" not in v, "the path of a file" + words, expand_home)


def expand_home(path: str) -> str:
  """Returns a path with the home folder in place of `~` or `~user`.

  Raises:
    ConfigError: there is no such home folder, so that a folder called `~` would be meant.
  """
  # No shell expands `~` behind `=`.
  expanded = os.path.expanduser(path)
  if path.startswith("~") and expanded == path:
    name = path.split("/")[0]
    raise ConfigError(f"the path {path!r} begins with {name}, and no home folder is known by that name; for a file or "
                      f"folder that is called {name} write ./{name}")
  return expanded


def even(low: int, high: int) -> Legal:
  """Allows even whole numbers within limits."""
  return Legal(lambda v: low <= v <= high and v % 2 == 0, f"an even number from {low} to {high}")


def span(low: float, high: float, words: str = "") -> Legal:
  """Allows a pair (smallest, largest) within limits."""
  return Legal(lambda v: len(v) == 2 and all(map(finite, v)) and low <= v[0] <= v[1] <= high,
               f"(smallest, largest) with {low:g} <= smallest <= largest <= {high:g}{words}", tuple)


def scheduled_values(spec: Any) -> list[float] | None:
  """Returns the values of a scheduled number, or None if its form is not legal."""
  if finite(spec):
    return [spec]
  if not spec or not all(isinstance(p, tuple) and len(p) == 2 and all(map(finite, p)) for p in spec):
    return None
  places = [p for p, _ in spec]
  # Strictly rising: the interpolation divides by the distance of two places.
  rising = all(a < b for a, b in itertools.pairwise(places))
  return [v for _, v in spec] if rising and 0.0 <= places[0] and places[-1] <= 1.0 else None


def _plain(spec: Any) -> Any:
  """Returns a scheduled number with a constant as a float and points as a tuple of pairs; (v,) is a constant."""
  if isinstance(spec, (np.generic, np.ndarray)):  # in a file of settings
    spec = spec.tolist()
  if isinstance(spec, (list, tuple)) and len(spec) == 1 and finite(spec[0]):
    spec = spec[0]
  if finite(spec):
    return float(spec)
  if isinstance(spec, (list, tuple)):
    return tuple(tuple(point) if isinstance(point, (list, tuple)) else point for point in spec)
  return spec


SCHEDULED_FORM = ("a constant v or points ((p0, v0), (p1, v1), ...) with fractions p of the run rising within [0, 1] "
                  "and values")
"""The form of a scheduled number, in errors."""


def scheduled(low: float, high: float = math.inf, words: str = "") -> Legal:
  """Allows a number that may change over the run, with all its values within limits."""
  def test(spec: Any) -> bool:
    values = scheduled_values(spec)
    return values is not None and all(low <= v <= high for v in values)

  limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
  return Legal(test, f"{SCHEDULED_FORM} {limits}{words}", _plain, loose=True, scheduled=True)


def or_auto(legal: Legal) -> Legal:
  """Allows "auto" (or an empty tuple) besides the legal values."""
  def convert(value: Any) -> Any:
    return AUTO if isinstance(value, (str, tuple, list)) and value in (AUTO, (), []) else legal.convert(value)

  return Legal(lambda v: v == AUTO or legal.test(v), lambda: f"{AUTO}, or {legal.describe()}", convert, loose=True,
               scheduled=legal.scheduled)


def setting(default: Any, legal: Legal, meaning: str) -> Any:
  """Declares a field of a group.

  Args:
    default: value of a run that does not set the field.
    legal: the legal values.
    meaning: one line for the settings reference.
  """
  return dataclasses.field(default=default, metadata=dict(legal=legal, meaning=meaning))


def group(kind: Callable[[], Any]) -> Any:
  """Declares a field that is a group of settings itself."""
  return dataclasses.field(default_factory=kind)


def is_group(value: Any) -> bool:
  """Returns whether a value is a group of settings."""
  # `is_dataclass` is true of a class as well as of its instances.
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def to_dict(settings: Any) -> dict[str, Any]:
  """Returns a group as nested dictionaries, for records and checkpoints."""
  return {field.name: to_dict(value) if is_group(value) else value
          for field in dataclasses.fields(settings) for value in (getattr(settings, field.name),)}


def to_config(settings: Any) -> ConfigDict:
  """Returns a group as an unlocked `ConfigDict`.

  A field that takes values of several types, such as a scheduled number, becomes a reference of type object, so that
  flags parse a number and a tuple of points alike.
  """
  config = ConfigDict()
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if is_group(value):
      config[field.name] = to_config(value)
    elif field.metadata["legal"].loose:
      config[field.name] = FieldReference(value, field_type=object)
    else:
      config[field.name] = value
  return config


def replaced(settings: T, changes: dict[str, Any]) -> T:
  """Returns a group with some fields changed, by dotted name; nothing is checked.

  >>> import dataclasses
  >>> @dataclasses.dataclass(frozen=True)
  ... class Steps:
  ...   count: int = setting(500, whole(1), "updates")
  >>> replaced(Steps(), {"count": 3}).count
  3
  """
  for path, value in changes.items():
    name, _, rest = path.partition(".")
    settings = dataclasses.replace(
        settings, **{name: replaced(getattr(settings, name), {rest: value}) if rest else value})
  return settings


def read(reference: T, config: ConfigDict, prefix: str = "config", ranges: bool = True, relations: bool = True) -> T:
  """Checks a `ConfigDict` and returns it as the group that `reference` is of.

  Names and types are checked, then ranges, then the relations within each group.

  Args:
    reference: a group with its defaults.
    config: the values; every field of the group must be there.
    prefix: of the settings' names in errors.
    ranges: whether ranges and relations are checked, not only names and types.
    relations: whether relations are checked, too; otherwise `check_relations` does so later.

  Raises:
    ConfigError: the first mistake.
  """
  # Names first: a misspelt name is a better error than a consequence of its default.
  _check_names_and_types(config, reference, prefix)
  settings = _build(reference, config, prefix, ranges)
  if ranges and relations:
    check_relations(settings, prefix)
  return settings


def check_relations(settings: Any, prefix: str = "config") -> None:
  """Raises ConfigError if two settings contradict each other, inner groups first."""
  for problem in _relations(settings, prefix):
    raise ConfigError(problem)


def check_name(path: str, reference: Any, prefix: str = "config") -> None:
  """Raises ConfigError, with the nearest setting, unless the dotted `path` is a setting of `reference`."""
  value, place = reference, prefix
  for name in path.split("."):
    known = [field.name for field in dataclasses.fields(value)] if is_group(value) else []
    if name not in known:
      near = names.nearest_setting(path, [row.name for row in describe(reference)]) if known else None
      hint = (f"did you mean {prefix}.{near}?" if near else
              f"known here: {', '.join(sorted(known))}" if known else f"{place} has no settings inside")
      raise ConfigError(f"{prefix}.{path} is not a setting; {hint}")
    value, place = getattr(value, name), f"{place}.{name}"


class Described(NamedTuple):
  """A setting as the documentation shows it: dotted name, default, legal values, meaning; `legal` None for a group."""
  name: str
  default: Any
  legal: str | None
  meaning: str


def describe(settings: Any, prefix: str = "") -> Iterator[Described]:
  """Yields every group and every field of a tree in order."""
  for field in dataclasses.fields(settings):
    value, name = getattr(settings, field.name), f"{prefix}{field.name}"
    if is_group(value):
      yield Described(name, None, None, (value.__doc__ or "").strip().split("\n")[0])
      yield from describe(value, f"{name}.")
    else:
      yield Described(name, value, field.metadata["legal"].describe(), field.metadata["meaning"])


def _check_names_and_types(config: ConfigDict, reference: Any, prefix: str) -> None:
  for name in config:
    check_name(name, reference, prefix)
    value, default, path = config[name], getattr(reference, name), f"{prefix}.{name}"
    if is_group(default):
      if not isinstance(value, ConfigDict):
        first = dataclasses.fields(default)[0].name
        raise ConfigError(f"{path}={value!r} is not legal: it must be a group of settings, {path}.{first} and so on")
      _check_names_and_types(value, default, path)
      continue
    legal = _field(reference, name).metadata["legal"]
    if not legal.loose and not _same_type(value, default):
      raise ConfigError(f"{path}={_shown(value)} is of type {type(value).__name__}: it must be of type "
                        f"{type(default).__name__}, such as {default!r}, and {legal.describe()}")
    # Text is written as UTF-8, which has no lone surrogates. Folders may hold any bytes.
    if isinstance(value, str) and legal.text and any("\ud800" <= letter <= "\udfff" for letter in value):
      raise ConfigError(f"{path}={value!r} is not legal: it must be text, and it holds half a character (a lone "
                        "surrogate); type it again, or set the terminal to UTF-8")
  for field in dataclasses.fields(reference):
    if field.name not in config:
      raise ConfigError(f"{prefix}.{field.name} is missing; start from the defaults of sds_jax.settings")


def _build(reference: T, config: ConfigDict, prefix: str, ranges: bool) -> T:
  values = {}
  for field in dataclasses.fields(reference):
    value, default, path = config[field.name], getattr(reference, field.name), f"{prefix}.{field.name}"
    if is_group(default):
      values[field.name] = _build(default, value, path, ranges)
      continue
    legal, given = field.metadata["legal"], value
    try:
      value = legal.convert(value)
      fine = not ranges or legal.test(value)
    except ConfigError as error:
      if ranges:
        raise ConfigError(f"{path}={given!r} is not legal: {error}") from error
      fine = True
    except (TypeError, ValueError, OverflowError):  # a tuple with a string inside, say, or 10**400
      fine = not ranges
    if not fine:
      raise ConfigError(f"{path}={_shown(given)} is not legal: it must be {legal.describe()}")
    # A whole number for a float setting gives the same record as the float.
    values[field.name] = float(value) if isinstance(default, float) and finite(value) else value
  return type(reference)(**values)


def _shown(value: Any) -> str:
  # The repr of a ConfigDict has several lines.
  return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _relations(settings: Any, prefix: str) -> Iterator[str]:
  for field in dataclasses.fields(settings):
    if is_group(value := getattr(settings, field.name)):
      yield from _relations(value, f"{prefix}.{field.name}")
  if hasattr(settings, "relations"):
    yield from settings.relations(prefix)


def _field(settings: Any, name: str) -> dataclasses.Field:
  return next(field for field in dataclasses.fields(settings) if field.name == name)


def _same_type(value: Any, default: Any) -> bool:
  if isinstance(default, float):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if isinstance(default, int) and not isinstance(default, bool):
    return isinstance(value, int) and not isinstance(value, bool)
  if isinstance(default, tuple):
    return isinstance(value, (tuple, list))
  return isinstance(value, type(default))
