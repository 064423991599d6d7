"""Settings of the training renders: `render`, and of the occupancy grid that skips empty space: `occupancy`."""
from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from sds_jax.schema import Legal, even, finite, number, one_of, setting, whole

_MEMORY = "; lower it if memory is short"


def _rising_sizes(spec: Any) -> bool:
  places = [p for p, _ in spec]
  # Type int exactly: a float or True as a size would fail only later, as a shape.
  return (all(finite(p) and 0.0 < p < 1.0 for p in places) and all(a < b for a, b in itertools.pairwise(places))
          and all(type(size) is int and 8 <= size <= 1024 for _, size in spec))


_MILESTONES = Legal(_rising_sizes, "(), or ((p, size), ...) with fractions p of the run rising between 0 and 1, and "
                    "whole sizes from 8 to 1024", lambda spec: tuple(map(tuple, spec)))


@dataclasses.dataclass(frozen=True)
class RenderSettings:
  """Size and samples of the views that a step renders."""
  height: int = setting(64, whole(8, 1024, _MEMORY), "height in pixels; equal to `width`")
  width: int = setting(64, whole(8, 1024, _MEMORY), "width in pixels")
  num_samples: int = setting(16, whole(2, 1024, _MEMORY), "samples of a ray, on average, chosen among the candidates")
  candidates: int = setting(48, whole(2, 4096, _MEMORY), "evenly spaced places along a ray where samples may lie")
  block_points: int = setting(
      -1, whole(-1, 10**8, " (-1: chosen by the backend, 0: no blocks)"), "points of a call of the field")
  milestones: tuple = setting((), _MILESTONES, "((p, size), ...): from the fraction p of the run on, height and width")
  normals: str = setting("analytic", one_of(("analytic", "difference")), "normals by automatic or finite differences")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.candidates < self.num_samples:
      yield (f"{path}.candidates={self.candidates} is less than {path}.num_samples={self.num_samples}: samples are "
             "chosen among the candidates, so there must be at least as many")
    if self.height != self.width:
      yield (f"{path}.height={self.height} differs from {path}.width={self.width}: priors see square images; make them "
             "equal")


@dataclasses.dataclass(frozen=True)
class OccupancySettings:
  """The grid of occupied cells; rays take samples in occupied cells only."""
  resolution: int = setting(32, even(4, 256), "cells along an axis")
  every: int = setting(8, whole(0, words=" (0: no occupancy grid)"), "steps between updates of the grid")
  decay: float = setting(0.9, number(0.0, 1.0), "factor on the old densities at an update")
  start_step: int = setting(32, whole(0), "step before which every cell counts as occupied")
