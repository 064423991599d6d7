"""Settings of light and shading: `shading`."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.schema import Span, number, setting, span

ROUNDING = 1e-9
"""Sums of probabilities may exceed 1 by this much."""


@dataclasses.dataclass(frozen=True)
class ShadingSettings:
  """How a view is shaded: unshaded (albedo), Lambertian, or Lambertian without texture, drawn for every step.

  The probability of albedo is 1 - lambertian - textureless. Light is ambient and, for the rest, diffuse from a point.
  """
  albedo_until: float = setting(0.2, number(0.0, 1.0), "up to this fraction of the run every view is unshaded")
  lambertian: float = setting(0.5, number(0.0, 1.0), "probability of shading after `albedo_until`")
  textureless: float = setting(0.0, number(0.0, 1.0), "probability of shading a white object after `albedo_until`")
  ambient: float = setting(0.5, number(0.0, 1.0), "share of the light that is ambient; the rest is diffuse")
  ambient_spread: float = setting(
      0.0, number(0.0, 1.0), "a random amount of the diffuse light, up to this, is ambient instead")
  distance: Span = setting((0.8, 1.5), span(0.01, 100.0), "distance of the light from the origin, world units")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.lambertian + self.textureless > 1.0 + ROUNDING:
      yield (f"{path}.lambertian={self.lambertian} and {path}.textureless={self.textureless} sum to more than 1: the "
             "rest is the probability of plain albedo; lower one")
    if self.ambient + self.ambient_spread > 1.0 + ROUNDING:
      yield (f"{path}.ambient={self.ambient} and {path}.ambient_spread={self.ambient_spread} sum to more than 1: no "
             "more light can be ambient than there is; lower one")
