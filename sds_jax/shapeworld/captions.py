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

from sds_jax.priors.captions import VIEWS as VIEWS
from sds_jax.priors.captions import CaptionError as CaptionError
from sds_jax.priors.captions import Grammar
from sds_jax.shapeworld import solids

GRAMMAR = Grammar(tuple(solids.COLOURS), tuple(solids.KINDS), tuple(solids.PLAIN))
"""The words of the captions; the prior's model_index.json holds them too."""
WORDS: frozenset[str] = GRAMMAR.words
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


def parse(text: str) -> Spec:
  """Reads a caption (`Grammar.parse`).

  Raises:
    CaptionError: a word is unknown (it is named), or the words don't make one object or one on top of another.
  """
  return Spec(*GRAMMAR.parse(text))


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
