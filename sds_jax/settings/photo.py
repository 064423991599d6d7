"""Settings of the photo that image-to-3D starts from: `picture`."""
from __future__ import annotations

import dataclasses
from typing import Any

from sds_jax.schema import AUTO, Legal, file, finite, number, one_of, or_auto, setting

FRAMINGS = ("auto", "centre", "keep")
"""Legal values of `framing`."""

BACKGROUND_METHODS = ("auto", "alpha", "plain", "rembg")
"""Legal values of `background`."""


def _degrees(value: Any) -> Any:
  if isinstance(value, str):
    # The setting takes text because of "auto", so flags hand over numbers as text, too.
    return AUTO if value.strip() == AUTO else float(value)
  return float(value) if finite(value) else value


_ELEVATION = or_auto(Legal(lambda v: finite(v) and abs(v) <= 89.0, "a number of degrees from -89 to 89", _degrees))


@dataclasses.dataclass(frozen=True)
class PhotoSettings:
  """The photo's camera, framing and background, and maps of the same photo for `loss.depth` and `loss.normals`.

  A depth map is grey: light is far with "depth" (Omnidata, ZoeDepth), near with "disparity" (MiDaS, Depth Anything). A
  normal map holds 255 (n + 1) / 2 in its colours, where x points right, y up and z towards the camera (OpenGL).
  Transparent pixels of a map are unknown.

  `framing`: "centre" centres and scales the object, "keep" leaves the photo, "auto" keeps an object that is well framed
  and centres any other. `background`: "alpha" takes the file's transparency, "plain" removes the one colour of the
  border, "rembg" asks that library's network, "auto" takes the first of these that applies.
  """
  elevation_deg: float | str = setting(AUTO, _ELEVATION, "elevation of the camera; auto: estimated by the prior")
  azimuth_deg: float = setting(0.0, number(-360.0, 360.0), "azimuth of the camera, degrees; 0: the world's front")
  framing: str = setting("auto", one_of(FRAMINGS), "how the object is moved into the middle of the frame")
  background: str = setting("auto", one_of(BACKGROUND_METHODS), "how the object is separated from its background")
  depth: str = setting("", file(" (empty: none)"), "file of the depth map")
  depth_is: str = setting("depth", one_of(("depth", "disparity")), "kind of the depth map: light is far, or near")
  normals: str = setting("", file(" (empty: none)"), "file of the normal map")
