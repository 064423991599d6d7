"""The grammar of ShapeWorld's captions, as data that a prior's model_index.json can hold.

  caption := object [" on top of " object] [", " view]        object := ("a" | "an") colour shape
  view    := "front view" | "side view" | "back view" | "overhead view"
"""
from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from sds_jax.priors.base import Config, PromptError
from sds_jax.views import prompts

VIEWS: tuple[str, ...] = tuple(f"{view} view" for view in prompts.VIEWS)
ARTICLES: tuple[str, ...] = ("a", "an", "the")
JOINT: tuple[str, ...] = ("on", "top", "of")

Part = tuple[str, str]
"""(colour, shape)."""


@dataclasses.dataclass(frozen=True)
class Grammar:
  """The words of the captions.

  Attributes:
    colours: names of colours.
    shapes: names of shapes.
    stackable: the shapes that can stand on each other.
  """
  colours: tuple[str, ...]
  shapes: tuple[str, ...]
  stackable: tuple[str, ...]

  @classmethod
  def from_config(cls, config: Config) -> Grammar:
    """Returns the grammar of the key `captions` in a model_index.json.

    `as_dict` writes the key.
    """
    return cls(*(tuple(config[field.name]) for field in dataclasses.fields(cls)))

  def as_dict(self) -> dict[str, Any]:
    """Returns the value of the key `captions` in a model_index.json."""
    return {name: list(words) for name, words in dataclasses.asdict(self).items()}

  @property
  def words(self) -> frozenset[str]:
    """Returns every word that a caption can have."""
    views = itertools.chain(*(view.split() for view in VIEWS))
    return frozenset({*self.colours, *self.shapes, *ARTICLES, *JOINT, *views})

  def parse(self, text: str) -> tuple[tuple[Part, ...], str | None]:
    """Returns the parts and the view of a caption.

    One part, or two with the upper part first; one of VIEWS, or None.

    The parser accepts any case, missing articles, extra spaces, a final full stop and a missing comma.

    Raises:
      CaptionError: a word is unknown (the message names the word), or the words don't describe one object or one
        object on top of another.
    """
    # Spaces around commas make a comma a word of its own.
    words = text.lower().replace(",", " , ").strip().rstrip(".").split()
    known = self.words
    for word in words:
      if word not in known and word != ",":
        raise CaptionError(f"unknown word {word!r} in {text!r}", self)
    # Every view is two words.
    view = " ".join(words[-2:])
    view = view if view in VIEWS else None
    words = words[:-2] if view else words
    words = words[:-1] if words and words[-1] == "," else words
    cut = next((i for i in range(len(words)) if tuple(words[i:i + 3]) == JOINT), None)
    if cut is None:
      return (self._parse_part(words, text),), view
    parts = (self._parse_part(words[:cut], text), self._parse_part(words[cut + 3:], text))
    for _, shape in parts:
      if shape not in self.stackable:
        raise CaptionError(f"a {shape} cannot be stacked, in {text!r}", self)
    return parts, view

  def _parse_part(self, words: list[str], text: str) -> Part:
    words = words[1:] if words and words[0] in ARTICLES else words
    if len(words) != 2 or words[0] not in self.colours or words[1] not in self.shapes:
      raise CaptionError(f"cannot read {text!r}: an object is a colour and a shape, not {' '.join(words)!r}", self)
    return words[0], words[1]

  def check_prompt(self, prompt: str, view_words: bool = False) -> None:
    """Raises CaptionError where `prompt` is no caption.

    Raises PromptError where `prompt` names a view though the job adds views.
    """
    _, view = self.parse(prompt)
    if view and view_words:
      raise PromptError("the view words are added for each camera, so the prompt must have none")


class CaptionError(PromptError):
  """A text that is no caption; the message describes the grammar."""

  def __init__(self, problem: str, grammar: Grammar):
    super().__init__(
      f"{problem}. ShapeWorld knows the shapes {', '.join(grammar.shapes)} and the colours "
      f"{', '.join(grammar.colours)}. Write one object, \"a red cube\", or put one of {', '.join(grammar.stackable)} "
      f"on top of another: \"a green cone on top of a blue cylinder\".")
