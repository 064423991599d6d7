"""Settings of the 3D representation that is optimized: `field` and one group for each network."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.fields import field
from sds_jax.schema import Scheduled, above, group, number, one_of, scheduled, scheduled_values, setting, whole


@dataclasses.dataclass(frozen=True)
class MlpSettings:
  """A small MLP of encoded points; the default on CPUs."""
  hidden: int = setting(32, whole(1, 1024), "width of the hidden layers")
  depth: int = setting(2, whole(1, 32), "number of hidden layers")
  num_octaves: int = setting(4, whole(1, 16), "frequencies of the positional encoding")
  # Normals are gradients of the density, and learning differentiates them again: relu has no second derivative.
  activation: str = setting("silu", one_of(("relu", "silu", "softplus")), "of the hidden layers; relu suits no normals")


@dataclasses.dataclass(frozen=True)
class PaperMlpSettings:
  """DreamFusion's MLP (arXiv:2209.14988, appendix A.2): integrated encoding and residual blocks."""
  hidden: int = setting(128, whole(1, 1024), "width of the residual blocks")
  blocks: int = setting(5, whole(1, 32), "number of residual blocks")
  num_octaves: int = setting(8, whole(1, 16), "frequencies of the integrated encoding")
  variance: Scheduled = setting(2e-3, scheduled(0.0, 1.0), "blur: variance around a point, world units squared")


@dataclasses.dataclass(frozen=True)
class HashGridSettings:
  """A multiresolution hash grid (instant-ngp, arXiv:2201.05989) with a small MLP."""
  levels: int = setting(8, whole(1, 32), "number of grids")
  features: int = setting(2, whole(1, 16), "features of a vertex")
  coarsest: int = setting(8, whole(2, 1024), "cells along an axis of the coarsest grid")
  finest: int = setting(128, whole(2, 8192), "cells along an axis of the finest grid")
  log2_table: int = setting(17, whole(8, 24), "log2 of the largest number of rows of a grid's table")
  hidden: int = setting(32, whole(1, 1024), "width of the hidden layers of the MLP")
  depth: int = setting(1, whole(0, 32), "number of hidden layers of the MLP")
  open_levels: Scheduled = setting(0.0, scheduled(0.0, 32.0), "how many grids are in use, the coarsest first; 0: all")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.finest < self.coarsest:
      yield (f"{path}.finest={self.finest} is less than {path}.coarsest={self.coarsest}: the levels go from coarse to "
             "fine; exchange them")
    # A level that never opens would be exported untrained.
    values = scheduled_values(self.open_levels)
    if self.open_levels != 0.0 and (min(values) < 1 or values[-1] != self.levels):
      yield (f"{path}.open_levels={self.open_levels!r} must stay at 1 or above and end at {path}.levels={self.levels}, "
             "since the finished object is shown with all of them; or give 0.0: all from the start")


@dataclasses.dataclass(frozen=True)
class FieldSettings:
  """The optimized field: density and colour of every point in a ball around the origin."""
  name: str = setting("mlp", one_of(field.FIELDS), "the network; the group of the same name has the network's settings")
  bound: float = setting(0.8, number(0.05, 1.0), "radius of the ball that the field fills, world units")
  density: str = setting("softplus", one_of(field.ACTIVATIONS), "activation of the density logit")
  blob: str = setting("linear", one_of(field.BLOBS), "shape of the density that the field starts with")
  blob_scale: float = setting(10.0, number(0.0, 1000.0), "height of the blob, added to the density")
  blob_radius: float = setting(0.35, above(0.0), "radius of the blob, world units")
  density_bias: float = setting(0.0, number(-100.0, 100.0), "constant added to the density logit")
  mlp: MlpSettings = group(MlpSettings)
  paper_mlp: PaperMlpSettings = group(PaperMlpSettings)
  hashgrid: HashGridSettings = group(HashGridSettings)
