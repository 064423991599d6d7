"""Settings of the outputs of a finished object: `export`."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sds_jax.schema import Legal, number, setting, switch, whole

MESH_FILES: dict[str, tuple[str, ...]] = dict(
    glb=("mesh.glb",), obj=("mesh.obj", "mesh.mtl", "mesh.png"), ply=("mesh.ply",), stl=("mesh.stl",))
"""Formats of a mesh -> the names of their files."""


def _several(choices: Sequence[str]) -> Legal:
  """Allows one or more of the choices, as a tuple or separated by commas; none occurs twice in the result."""
  def convert(value: Any) -> Any:
    if isinstance(value, str):
      value = [word.strip() for word in value.split(",")]
    return tuple(dict.fromkeys(value)) if isinstance(value, (list, tuple)) and all(
        isinstance(word, str) for word in value) else value

  return Legal(lambda v: isinstance(v, tuple) and bool(v) and all(word in choices for word in v),
               "one or more of " + ", ".join(choices), convert, loose=True)


def _or_zero(low: int, high: int, meaning: str) -> Legal:
  """Allows whole numbers within limits, and 0, whose meaning is given."""
  return Legal(lambda v: v == 0 or low <= v <= high, f"a whole number from {low} to {high}, or 0 ({meaning})")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
  """The mesh, the renders and the turntable that a run leaves."""
  mesh_resolution: int = setting(96, whole(16, 1024), "cells along an axis for marching cubes")
  mesh_threshold: float = setting(0.0, number(0.0, words=" (0: chosen by voxel size)"), "density of the surface")
  faces: int = setting(20_000, _or_zero(4, 10**7, "all"), "faces of the written mesh, about")
  texture_size: int = setting(1024, _or_zero(64, 4096, "colours at the vertices"), "side of the texture, pixels")
  formats: tuple = setting(("glb", "obj"), _several(tuple(MESH_FILES)), "kinds of files of the mesh")
  scale: float = setting(1.0, number(1e-6, 1e6), "length of a world unit in the files (in metres for GLB)")
  image_size: int = setting(128, whole(16, 4096), "side of the renders in pixels")
  turntable_frames: int = setting(48, whole(2, 10_000), "frames of the turntable, one turn")
  turntable_elevation_deg: float = setting(20.0, number(-89.0, 89.0), "elevation of the turntable's camera, degrees")
  num_samples: int = setting(64, whole(4, 4096), "samples of a ray of the renders")
  mesh: bool = setting(True, switch(), "whether a mesh is written")
  turntable: bool = setting(True, switch(), "whether a turntable is written")
