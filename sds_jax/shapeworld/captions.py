"""The captions of ShapeWorld: a grammar, its parser, and the colour-kind pairs that are kept from training.

  caption := object [" on top of " object] [", " view]        object := ("a" | "an") colour kind
  view    := "front view" | "side view" | "back view" | "overhead view"
"""
from __future__ import annotations

import dataclasses
import itertools
import types
from typing import Mapping

import numpy as np

from sds_jax.shapeworld import solids
from sds_jax.views import prompts

VIEWS: tuple[str, ...] = tuple(f"{view} view" for view in prompts.VIEWS)
ARTICLES: tuple[str, ...] = ("a", "an", "the")
JOINT: tuple[str, ...] = ("on", "top", "of")
WORDS: frozenset[str] = frozenset(
  {*solids.COLOURS, *solids.KINDS, *ARTICLES, *JOINT, *itertools.chain(*(view.split() for view in VIEWS))})
"""Every word that a caption can have."""

Part = tuple[str, str]
"""(colour, kind)."""

HELD_OUT: frozenset[Part] = frozenset(
  (list(solids.COLOURS)[(3 * i + 1) % 8], kind) for i, kind in enumerate(solids.KINDS) if kind != "mug")
"""Colour-kind pairs that no training image shows: at most one colour of a kind and two kinds of a colour."""


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a caption says.

  Attributes:
    parts: one (colour, kind), or two, the upper one first.
    view: one of `VIEWS`, or None.
  """
  parts: tuple[Part, ...]
  view: str | None = None


class CaptionError(ValueError):
  """A caption that is not of the grammar; the message says what is."""

  def __init__(self, problem: str):
    super().__init__(
      f"{problem}. ShapeWorld knows the shapes {', '.join(solids.KINDS)} and the colours {', '.join(solids.COLOURS)}. "
      f"Write one object, \"a red cube\", or put one of {', '.join(solids.PLAIN)} on top of another: "
      f"\"a green cone on top of a blue cylinder\".")


def _parse_part(words: list[str], text: str) -> Part:
  words = words[1:] if words and words[0] in ARTICLES else words
  if len(words) != 2 or words[0] not in solids.COLOURS or words[1] not in solids.KINDS:
    raise CaptionError(f"cannot read {text!r}: an object is a colour and a shape, not {' '.join(words)!r}")
  return words[0], words[1]


def parse(text: str) -> Spec:
  """Reads a caption; tolerant of case, of articles, of extra spaces, of a final full stop and of a missing comma.

  Raises:
    CaptionError: a word is unknown (it is named), or the words don't make one object or one on top of another.
  """
  words = text.lower().replace(",", " , ").strip().rstrip(".").split()
  for word in words:
    if word not in WORDS and word != ",":
      raise CaptionError(f"unknown word {word!r} in {text!r}")
  view = " ".join(words[-2:])
  view = view if view in VIEWS else None
  words = words[:-2] if view else words
  words = words[:-1] if words and words[-1] == "," else words
  cut = next((i for i in range(len(words)) if tuple(words[i:i + 3]) == JOINT), None)
  if cut is None:
    return Spec((_parse_part(words, text),), view)
  parts = (_parse_part(words[:cut], text), _parse_part(words[cut + 3:], text))
  for _, kind in parts:
    if kind not in solids.PLAIN:
      raise CaptionError(f"a {kind} cannot be stacked, in {text!r}")
  return Spec(parts, view)


def caption(spec: Spec, view: str | None = None) -> str:
  """The caption of a spec, with the view words `view` (one of `VIEWS`), or else those of the spec, if any."""
  text = " on top of ".join(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}" for colour, kind in spec.parts)
  view = view or spec.view
  return f"{text}, {view}" if view else text


def azimuth_is_fixed(spec: Spec) -> bool:
  """True where the caption says how the object is turned about z: where a part has a front."""
  return any(kind in solids.FRONTED for _, kind in spec.parts)


def all_specs() -> list[Spec]:
  """Every spec without view words: 88 single objects, then 3,136 stacked ones."""
  single = list(itertools.product(solids.COLOURS, solids.KINDS))
  plain = [part for part in single if part[1] in solids.PLAIN]
  return [Spec((part,)) for part in single] + [Spec(parts) for parts in itertools.product(plain, plain)]


def is_held_out(spec: Spec) -> bool:
  """True if a part of the spec is a pair that training never shows."""
  return any(part in HELD_OUT for part in spec.parts)


def _sample_part(rng: np.random.Generator, kinds: tuple[str, ...], held_out: bool,
                 weights: Mapping[str, float]) -> Part:
  """A kind, by its weight, then a colour, equally likely among those allowed."""
  kinds = tuple(kind for kind in kinds if not held_out or any(kind == other for _, other in HELD_OUT))
  if weights:
    shares = np.array([weights.get(kind, 1.0) for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
  else:
    kind = kinds[rng.integers(len(kinds))]
  colours = [colour for colour in solids.COLOURS if ((colour, kind) in HELD_OUT) == held_out]
  return colours[rng.integers(len(colours))], kind


def sample_spec(rng: np.random.Generator, two_part_probability: float = 0.5, held_out: bool = False,
                weights: Mapping[str, float] = types.MappingProxyType({})) -> Spec:
  """A random spec without view words; consumes `rng`.

  Args:
    rng: numpy generator.
    two_part_probability: share of stacked objects.
    held_out: False draws only from pairs that training shows; True makes the object, or the upper one of two, a
      held-out pair.
    weights: kind -> how much more often than others it is drawn, where not 1.
  """
  if rng.random() >= two_part_probability:
    return Spec((_sample_part(rng, solids.KINDS, held_out, weights),))
  return Spec((_sample_part(rng, solids.PLAIN, held_out, weights), _sample_part(rng, solids.PLAIN, False, weights)))
