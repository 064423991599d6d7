"""Settings of the outputs of a finished object: `export`."""
from __future__ import annotations

import dataclasses

from sds_jax.schema import number, setting, switch, whole


@dataclasses.dataclass(frozen=True)
class ExportSettings:
  """The mesh, the renders and the turntable that a run leaves."""
  mesh_resolution: int = setting(96, whole(16, 1024), "cells along an axis for marching cubes")
  mesh_threshold: float = setting(0.0, number(0.0, words=" (0: chosen by voxel size)"), "density of the surface")
  image_size: int = setting(128, whole(16, 4096), "side of the renders in pixels")
  turntable_frames: int = setting(48, whole(2, 10_000), "frames of the turntable, one turn")
  turntable_elevation_deg: float = setting(20.0, number(-89.0, 89.0), "elevation of the turntable's camera, degrees")
  num_samples: int = setting(64, whole(4, 4096), "samples of a ray of the renders")
  mesh: bool = setting(True, switch(), "whether a mesh is written")
  turntable: bool = setting(True, switch(), "whether a turntable is written")
