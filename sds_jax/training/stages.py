"""The stages of a run, each with its own render size or its own kind of render.

A compiled program has fixed image sizes, and so has the prior's input. A run with `render.milestones` or
`distillation.latent_until` therefore has one program for each stage. The stages share state, optimiser and schedules,
all of which depend only on the fraction of the whole run.
"""
from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from sds_jax.generators.protocol import Generator

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a run with one compiled program.

  Attributes:
    first: number of its first step.
    generator: renders the stage's views.
    size: height and width of the renders; 0 where a run has one stage.
    as_latent: whether normals and opacity are the latent.
  """
  first: int
  generator: Generator
  size: int = 0
  as_latent: bool = False

  def __str__(self) -> str:
    return f"{self.size}x{self.size}{' as latents' if self.as_latent else ''}"


def make_stages(steps: int, size: int, milestones: Sequence[tuple[float, int]], latent_until: float,
                make_generator: Callable[[int, bool], Generator]) -> tuple[Stage, ...]:
  """Returns the stages of a run in order; the first begins at step 0.

  Args:
    steps: number of steps of the run.
    size: of the first renders, pixels.
    milestones: ((fraction of the run, size from there on), ...).
    latent_until: fraction of the run whose renders are latents.
    make_generator: (size, as_latent) -> the generator of a stage.
  """
  # Rounded, because 0.07 of 100 is 7.000000000000001 in floats.
  begins = lambda fraction: min(math.ceil(round(fraction * steps, 6)), steps)  # noqa: E731
  sizes = {0: size, **{begins(place): later for place, later in milestones}}
  rgb_from = begins(latent_until)
  stages = []
  for first in sorted({*sizes, rgb_from}):
    size = sizes.get(first, size)
    if first < steps or first == 0:
      stages.append(Stage(first, make_generator(size, first < rgb_from), size, first < rgb_from))
  return tuple(stages)


def at_step(stages: Sequence[Stage], items: Sequence[T], step: int) -> T:
  """Returns the item of the stage that a step belongs to.

  `items` has one item for each stage.
  """
  return items[bisect.bisect_right([stage.first for stage in stages], step) - 1]


def are_over(stages: Sequence[Stage], step: int) -> list[bool]:
  """Returns for each stage whether a run is past the stage.

  The run continues with step number `step`.
  """
  return [after.first <= step for after in stages[1:]] + [False]
