"""Settings of the background behind the object: `background` and one group for each learnt network."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.fields import background
from sds_jax.schema import group, number, one_of, setting, whole


@dataclasses.dataclass(frozen=True)
class DirectionMlpSettings:
  """A small MLP of the encoded direction of a ray (DreamFusion)."""
  hidden: int = setting(32, whole(1, 1024), "width of the hidden layers")
  depth: int = setting(1, whole(0, 32), "number of hidden layers")
  num_octaves: int = setting(3, whole(1, 16), "frequencies of the positional encoding")


@dataclasses.dataclass(frozen=True)
class HarmonicsSettings:
  """Spherical harmonics of the direction of a ray and a small MLP (threestudio, DreamFusionAcc)."""
  degree: int = setting(3, whole(1, 4), "degree of the harmonics: degree^2 values")
  hidden: int = setting(16, whole(1, 1024), "width of the hidden layers")
  depth: int = setting(2, whole(0, 32), "number of hidden layers")


@dataclasses.dataclass(frozen=True)
class BackgroundSettings:
  """The colour behind the object, along each ray."""
  name: str = setting("plain", one_of(background.BACKGROUNDS), "plain: a random grey; white; mlp, harmonics: learnt")
  random_colour: float = setting(
      0.0, number(0.0, 1.0), "probability that a view has one random colour in place of a learnt background")
  mlp: DirectionMlpSettings = group(DirectionMlpSettings)
  harmonics: HarmonicsSettings = group(HarmonicsSettings)

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.random_colour > 0 and self.name not in background.LEARNT:
      yield (f"{path}.random_colour={self.random_colour} replaces a learnt background, but {path}.name={self.name!r} "
             f"is not learnt: set it to one of {', '.join(background.LEARNT)}, or random_colour to 0")
