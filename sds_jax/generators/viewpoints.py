"""The random cameras of a step's views."""
from __future__ import annotations

import dataclasses

import jax

from sds_jax.generators.protocol import Draws
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Camera
from sds_jax.views import cameras


@dataclasses.dataclass(frozen=True)
class Viewpoints:
  """The distribution of a step's cameras.

  Attributes:
    distribution: of one camera.
    views: number of views of a whole step.
    stratified: whether azimuths are spread evenly over the views of a step.
    group: number of neighbouring views that are spread evenly around the object and share everything else, for priors
      that look at several views together (`cameras.sample_groups`); 1: every view is drawn by itself.
  """
  distribution: cameras.CameraDistribution
  views: int
  stratified: bool = True
  group: int = 1

  def draw(self, draws: Draws) -> tuple[Camera, Array, Array]:
    """Draws cameras (leaves [B, ...]), azimuths [B] and elevations [B] of the views `draws.index`."""
    # Folded with the number of each view: draws do not depend on the number of devices.
    key = as_threefry(draws.keys["views"])
    if self.group > 1:
      return cameras.sample_groups(key, draws.index, self.views, self.group, self.stratified, self.distribution)
    if self.stratified:
      return cameras.sample_cameras(key, draws.index, self.views, self.distribution)
    return jax.vmap(lambda i: cameras.sample_camera(jax.random.fold_in(key, i), self.distribution))(draws.index)
