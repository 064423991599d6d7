"""Settings that list files: LoRAs with scales, and embeddings with tokens, as texts or as tuples."""
from __future__ import annotations

from collections.abc import Sequence
import os
from typing import Any

LARGEST_SCALE = 1000.0
"""Upper limit of the absolute value of a LoRA's scale."""
_LARGEST_COUNT = 100


def parse_loras(value: Any) -> tuple[tuple[str, float], ...]:
  """Returns pairs (file, scale) of a setting that lists LoRAs.

  Args:
    value: a text "FILE:SCALE, FILE, ..." perhaps in parentheses; or a sequence of such single texts and of pairs (file,
      scale). A file without a scale has the scale 1.

  Raises:
    ValueError: the value is of no such form, or a scale is beyond LARGEST_SCALE.

  >>> parse_loras("(style.safetensors:0.7, /models/lcm.safetensors)")
  (('style.safetensors', 0.7), ('/models/lcm.safetensors', 1.0))
  """
  # One pair may stand alone: ("style.safetensors", 0.7).
  if isinstance(value, Sequence) and len(value) == 2 and isinstance(value[1], (int, float)):
    value = (value,)
  return _limited(tuple(_scaled(item) for item in _items(value)))


def parse_embeddings(value: Any) -> tuple[tuple[str, str], ...]:
  """Returns pairs (token, file) of a setting that lists embeddings; the token is "" where the file names it.

  Args:
    value: a text "FILE, TOKEN=FILE, ..." perhaps in parentheses; or a sequence of such single texts and of pairs
      (token, file).

  Raises:
    ValueError: the value is of no such form.

  >>> parse_embeddings("<cat>=learned_embeds.safetensors, EasyNegative.safetensors")
  (('<cat>', 'learned_embeds.safetensors'), ('', 'EasyNegative.safetensors'))
  """
  return _limited(tuple(_named(item) for item in _items(value)))


def _items(value: Any) -> list[Any]:
  """Returns the items of a text or of a sequence."""
  if isinstance(value, os.PathLike) or isinstance(value, str) and os.path.isfile(value):  # a name may have a comma
    return [value]
  if not isinstance(value, str):
    if not isinstance(value, Sequence):
      raise ValueError(f"{value!r} is neither a text nor a sequence")
    return list(value)
  text = value.strip()
  # The parentheses of a tuple that has lost its quotes to a shell.
  for first, last in ("()", "[]"):
    text = text[1:-1] if text.startswith(first) and text.endswith(last) else text
  parts = [part.strip().strip("'\"").strip() for part in text.split(",")]
  return [part for part in parts if part]


def _scaled(item: Any) -> tuple[str, float]:
  if isinstance(item, (str, os.PathLike)):
    name, scale = os.fspath(item), 1.0
    first, colon, last = name.rpartition(":")
    if colon and first and _number(last) is not None:
      name, scale = first, _number(last)
  else:
    name, scale = _pair(item)
  if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= LARGEST_SCALE:
    raise ValueError(f"the scale {scale!r} of {name} is not from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}")
  return _path(name), float(scale)


def _named(item: Any) -> tuple[str, str]:
  if not isinstance(item, (str, os.PathLike)):
    token, name = _pair(item)
    if not isinstance(token, str):
      raise ValueError(f"{token!r} is no token")
    return token.strip(), _path(name)
  name = os.fspath(item)
  token, equals, rest = name.partition("=")
  # A folder's or file's name may have an equals sign, as "steps=500/learned_embeds.safetensors".
  if equals and token.strip() and rest.strip() and not os.path.exists(_path(name)):
    return token.strip(), _path(rest.strip())
  return "", _path(name)


def _pair(item: Any) -> tuple[Any, Any]:
  if not isinstance(item, Sequence) or len(item) != 2:
    raise ValueError(f"{item!r} is neither a text nor a pair")
  return item[0], item[1]


def _path(name: Any) -> str:
  """Returns a path as text, `~` expanded."""
  name = os.fspath(name) if isinstance(name, (str, os.PathLike)) else name
  if not isinstance(name, str) or not name.strip() or "\0" in name:
    raise ValueError(f"{name!r} is no path of a file")
  name.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
  return os.path.expanduser(name)


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _limited(pairs: tuple[Any, ...]) -> tuple[Any, ...]:
  if len(pairs) > _LARGEST_COUNT:
    raise ValueError(f"{len(pairs)} files are listed, at most {_LARGEST_COUNT} are read")
  return pairs
