"""Settings of the cameras that views are rendered from: `camera`."""
from __future__ import annotations

import dataclasses
import math

from sds_jax.schema import AUTO, Legal, Span, number, or_auto, setting, span, switch, whole

_FOCAL = span(0.1, 20.0)
_FOCAL_OR_NONE = Legal(lambda v: v == (0.0, 0.0) or _FOCAL.test(v),
                       f"(0.0, 0.0): fov_deg counts, or {_FOCAL.describe()}", tuple)


@dataclasses.dataclass(frozen=True)
class CameraSettings:
  """The distribution of cameras: each view of a step draws one around the object, at any azimuth.

  Distances are in world units (but see `relative`), in which the object lies within a ball of radius `field.bound`
  around the origin.
  """
  # The defaults are the cameras of the images on which the prior that ships was trained.
  elevation_deg: Span = setting((-10.0, 90.0), span(-90.0, 90.0), "angle above the horizon, degrees")
  distance: Span = setting((2.4, 3.0), span(0.1, 100.0), "distance of the camera from the origin, world units")
  relative: bool = setting(False, switch(), "`distance` times 1 / tan(fov / 2): objects keep their size in the frame")
  fov_deg: Span = setting((42.0, 50.0), span(5.0, 150.0), "vertical field of view, degrees")
  focal: Span = setting((0.0, 0.0), _FOCAL_OR_NONE,
                        "if set: focal length over image height, drawn evenly; fov_deg is then for outputs only")
  position_jitter: float = setting(0.05, number(0.0, 1.0), "half-width of a uniform shift of the camera, world units")
  target_std: float = setting(0.02, number(0.0, 1.0), "standard deviation of the point looked at, world units")
  up_std: float = setting(0.01, number(0.0, 1.0), "standard deviation of the up vector's components")
  group: int | str = setting(AUTO, or_auto(whole(1, 64)),
                             "views evenly spread around the object that share all else; auto: as the prior needs")
  stratified: bool = setting(True, switch(), "spread the azimuths of a step's views evenly, instead of independently")

  def nearest(self) -> float:
    """Returns the smallest distance of a camera, world units."""
    if not self.relative:
      return self.distance[0]
    factor = 2 * self.focal[0] if any(self.focal) else 1 / math.tan(math.radians(self.fov_deg[1]) / 2)
    return self.distance[0] * factor

  def middle(self) -> tuple[float, float]:
    """Returns distance (world units) and field of view (degrees) in the middle of their ranges."""
    distance, fov = (sum(pair) / 2 for pair in (self.distance, self.fov_deg))
    return (distance / math.tan(math.radians(fov) / 2) if self.relative else distance), fov
