"""What a setting may be, as pairs of a test and the words that say what is legal."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sds_jax.schema import ConfigError  # noqa: F401

Check = tuple[Callable[[Any], bool], str]
"""(is the value legal?, what is legal)"""

def finite(value: Any) -> bool:
  """Whether a value is a finite number, and no bool."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(low: float, high: float, words: str = "") -> Check:
  """A finite number within limits; `words` follow what is legal."""
  described = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"
  return lambda v: finite(v) and low <= v <= high, described + words


def above(low: float, words: str = "") -> Check:
  """A finite number above `low`."""
  return lambda v: finite(v) and v > low, f"a number above {low:g}{words}"


def whole(low: int, high: int = 10**9, words: str = "") -> Check:
  """A whole number within limits."""
  described = f"a whole number from {low} to {high}" if high < 10**9 else f"a whole number of at least {low}"
  return lambda v: low <= v <= high, described + words


def one_of(names: Any) -> Check:
  """One of the names."""
  names = tuple(names)
  return lambda v: v in names, "one of " + ", ".join(names)


def span(low: float, high: float) -> Check:
  """A pair (smallest, largest) within limits."""
  return (lambda v: len(v) == 2 and all(map(finite, v)) and low <= v[0] <= v[1] <= high,
          f"(smallest, largest) with {low:g} <= smallest <= largest <= {high:g}")


def scalar_values(spec: tuple) -> list[float] | None:
  """The values that a scheduled scalar passes through, or None if the tuple is not of a legal form."""
  if len(spec) == 1 and finite(spec[0]):
    return [spec[0]]
  if not spec or not all(isinstance(p, (tuple, list)) and len(p) == 2 and all(map(finite, p)) for p in spec):
    return None
  places = [p for p, _ in spec]
  rising = all(a < b for a, b in zip(places, places[1:]))
  return [v for _, v in spec] if rising and 0.0 <= places[0] and places[-1] <= 1.0 else None


def scalar(low: float, high: float = math.inf, words: str = "") -> Check:
  """A scheduled scalar whose values stay within limits."""
  def legal(spec):
    values = scalar_values(spec)
    return values is not None and all(low <= v <= high for v in values)
  limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
  return legal, (f"a constant (v,) or points ((p0, v0), (p1, v1), ...) with fractions p of the run rising within "
                 f"[0, 1] and values {limits}{words}")
