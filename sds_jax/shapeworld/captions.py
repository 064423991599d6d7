"""The captions of ShapeWorld: a grammar, its parser, and the colour-kind pairs kept out of training.

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
"""The words of the captions, also stored in model_index.json of the prior."""
WORDS: frozenset[str] = GRAMMAR.words
"""The vocabulary of all captions."""

Part = tuple[str, str]
"""(colour, kind)."""

# Three and eight have no common factor: consecutive kinds lose different colours, and no colour loses more than two.
HELD_OUT: frozenset[Part] = frozenset(
  (list(solids.COLOURS)[(3 * i + 1) % 8], kind) for i, kind in enumerate(solids.KINDS) if kind != "mug")
"""Colour-kind pairs absent from all training images: at most one colour of a kind and two kinds of a colour."""


@dataclasses.dataclass(frozen=True)
class Spec:
  """The content of a caption.

  Attributes:
    parts: a single (colour, kind), or two with the upper first.
    view: a member of `VIEWS`, or None.
  """
  parts: tuple[Part, ...]
  view: str | None = None


def parse(text: str) -> Spec:
  """Reads a caption by `Grammar.parse`.

  Case, articles, extra spaces, a final full stop and a missing comma do not matter.

  Raises:
    CaptionError: a word is unknown (the message names the word), or the words are neither an object nor a stack of two.
  """
  return Spec(*GRAMMAR.parse(text))


def caption(spec: Spec, view: str | None = None) -> str:
  """Returns the caption of a spec.

  Args:
    spec: the content.
    view: a member of `VIEWS` in place of `spec.view`; None keeps `spec.view`.
  """
  text = " on top of ".join(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}" for colour, kind in spec.parts)
  # An explicit view wins over the view of the spec.
  view = view or spec.view
  return f"{text}, {view}" if view else text


def azimuth_is_fixed(spec: Spec) -> bool:
  """Tells whether a part of the spec has a front."""
  return any(kind in solids.FRONTED for _, kind in spec.parts)


def all_specs() -> list[Spec]:
  """Lists every spec without view words.

  There are 88 single objects, then 3,136 stacks.
  """
  single = list(itertools.product(solids.COLOURS, solids.KINDS))
  plain = [part for part in single if part[1] in solids.PLAIN]
  return [Spec((part,)) for part in single] + [Spec(parts) for parts in itertools.product(plain, plain)]


def is_held_out(spec: Spec) -> bool:
  """Tells whether a part of the spec is in `HELD_OUT`."""
  return any(part in HELD_OUT for part in spec.parts)


def _sample_part(rng: np.random.Generator, kinds: tuple[str, ...], held_out: bool,
                 weights: Mapping[str, float]) -> Part:
  """Draws a kind, then a legal colour; consumes `rng`."""
  # "mug" has no held-out colour and cannot be drawn as a held-out pair.
  kinds = tuple(kind for kind in kinds if not held_out or any(kind == other for _, other in HELD_OUT))
  # `choice` with p and `integers` consume `rng` differently. Merging the branches would change every published draw.
  if weights:
    shares = np.array([weights.get(kind, 1.0) for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
  else:
    kind = kinds[rng.integers(len(kinds))]
  colours = [colour for colour in solids.COLOURS if ((colour, kind) in HELD_OUT) == held_out]
  return colours[rng.integers(len(colours))], kind


def sample_spec(rng: np.random.Generator, two_part_probability: float = 0.5, held_out: bool = False,
                weights: Mapping[str, float] = types.MappingProxyType({})) -> Spec:
  """Draws a spec without view words; consumes `rng`.

  Args:
    rng: numpy generator.
    two_part_probability: share of stacked objects.
    held_out: False draws only pairs outside `HELD_OUT`; True makes the object, or the upper of two, a held-out pair.
    weights: kind -> frequency relative to a kind with weight 1; absent kinds have weight 1.
  """
  if rng.random() >= two_part_probability:
    return Spec((_sample_part(rng, solids.KINDS, held_out, weights),))
  # Held-out stacks differ from training in the upper object alone, so the lower object comes from training pairs.
  return Spec((_sample_part(rng, solids.PLAIN, held_out, weights), _sample_part(rng, solids.PLAIN, False, weights)))
