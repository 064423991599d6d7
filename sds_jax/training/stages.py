"""The stages of a run: at which size it renders, and whether its renders are latents by themselves.

The size of an image is fixed in a compiled program, and so is what the prior gets to see. A run with
`render.milestones` or `distillation.latent_until` therefore has one program for each of its stages; they share state,
optimiser and schedules, all of which know only the fraction of the whole run.
"""
from __future__ import annotations

import bisect
import dataclasses
import math
from typing import Sequence, TypeVar

import ml_collections
from ml_collections import ConfigDict

from sds_jax.training import config as config_lib
from sds_jax.training.step import Scene, make_scene

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a run that is one program.

  Attributes:
    first: number of its first step.
    scene: the functions of the run, as they are from there on (of another job: what its steps are made of).
  """
  first: int
  scene: Scene

  def __str__(self) -> str:
    render = self.scene.config.render
    return f"{render.height}x{render.width}{' as latents' if self.scene.as_latent else ''}"


def make_stages(config: ml_collections.FrozenConfigDict) -> tuple[Stage, ...]:
  """The stages of a validated config, in order; the first begins at step 0. One, unless the settings ask for more."""
  steps = config.training.steps
  # Rounded, because 0.07 of 100 is 7.000000000000001 in floats.
  begins = lambda fraction: min(math.ceil(round(fraction * steps, 6)), steps)  # noqa: E731
  sizes = {0: config.render.height, **{begins(place): size for place, size in config.render.milestones}}
  rgb_from = begins(config.distillation.latent_until)
  size, stages = config.render.height, []
  for first in sorted({*sizes, rgb_from}):
    size = sizes.get(first, size)
    if first < steps or first == 0:
      stages.append(Stage(first, make_scene(_resized(config, size), as_latent=first < rgb_from)))
  return tuple(stages)


def _resized(config: ml_collections.FrozenConfigDict, size: int) -> ml_collections.FrozenConfigDict:
  if size == config.render.height:
    return config
  changed = ConfigDict(config.to_dict())
  changed.render.update(height=size, width=size)
  return config_lib.freeze(changed)


def at_step(stages: Sequence[Stage], made: Sequence[T], step: int) -> T:
  """Of `made`, one for each stage, the one of the stage that step number `step` belongs to."""
  return made[bisect.bisect_right([stage.first for stage in stages], step) - 1]


def are_over(stages: Sequence[Stage], step: int) -> list[bool]:
  """Whether each stage is behind a run that goes on with step number `step`."""
  return [after.first <= step for after in stages[1:]] + [False]
