"""The outputs of an object: renders, turntable, mesh and report, from a state alone."""
from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.generators import particles
from sds_jax.generators.custom import CustomGenerator
from sds_jax.generators.field import FieldGenerator
from sds_jax.io import files, images, report, run_files, video
from sds_jax.settings.camera import CameraSettings
from sds_jax.settings.export import MESH_FILES, ExportSettings
from sds_jax.training.state import TrainState
from sds_jax.training.versions import versions
from sds_jax.types import Array, Camera, RenderOutput
from sds_jax.views import cameras

TURNTABLES = ("turntable.mp4", "turntable.gif")
"""Names of the turntable, with and without an encoder of videos."""

ObjectGenerator = FieldGenerator | CustomGenerator

ViewFn = Callable[[TrainState, Camera, float], RenderOutput]
"""(state of one object, camera, ambient in [0, 1]) -> an image on white as numpy arrays; ambient 1 is bare albedo."""


@dataclasses.dataclass(frozen=True)
class ObjectView:
  """Renders finished objects.

  Attributes:
    view: the compiled renderer.
    cameras: settings of the training cameras, whose middle the outputs use.
    export: sizes and numbers of the outputs.
    ambient: share of ambient light in images that show the shape.
  """
  view: ViewFn
  cameras: CameraSettings
  export: ExportSettings
  ambient: float


class ReportPage(NamedTuple):
  """The contents of a report besides the outputs.

  Attributes:
    title: the prompt, or the photo's name.
    settings: nested dictionaries.
    comparison: an image of the photo beside the object, or None.
  """
  title: str
  settings: dict[str, Any]
  comparison: Path | None = None


def mesh_names(export: ExportSettings) -> tuple[str, ...]:
  """Returns the names of the files of a mesh in the formats of the settings."""
  return tuple(name for kind in export.formats for name in MESH_FILES[kind]
               if export.texture_size or name != "mesh.png")


def make_view(generator: ObjectGenerator, camera_settings: CameraSettings, export: ExportSettings,
              ambient: float) -> ObjectView:
  """Returns a renderer of images of `export.image_size`; see `ObjectView`."""
  # The ambient share is an argument and not a constant, so that one program serves shaded images and bare albedo.
  @jax.jit
  def view(params: Any, grid: Any, camera: Camera, ambient: Array) -> RenderOutput:
    return generator.render_camera(params, grid, camera, export.image_size, export.num_samples, ambient)

  def fetch(state: TrainState, camera: Camera, ambient: float) -> RenderOutput:
    return jax.device_get(view(state.shown, state.occupancy, camera, jnp.float32(ambient)))

  return ObjectView(fetch, camera_settings, export, ambient)


def pick_object(state: TrainState, count: int, number: int) -> TrainState:
  """Returns the state of particle `number` of `count`.

  The optimiser's part is not picked.
  """
  if count == 1:
    return state
  take = lambda tree: particles.pick(count, tree, number)  # noqa: E731
  return dataclasses.replace(state, params=take(state.params), ema=take(state.ema), occupancy=take(state.occupancy))


def each_object(state: TrainState, count: int, folder: Path) -> Iterator[tuple[Path, TrainState]]:
  """Yields each object with its folder.

  The first object has the run's folder, the others particle_1/ and so on.
  """
  for number in range(count):
    # The first object lies where that of a run of one object lies.
    place = folder / f"particle_{number}" if number else folder
    place.mkdir(exist_ok=True)
    yield place, pick_object(state, count, number)


def orbit_cameras(settings: CameraSettings, count: int, elevation_deg: float) -> Iterator[Camera]:
  """Yields `count` cameras around the object, the first in front.

  The distance is the middle of the training distances.
  """
  distance, fov = settings.middle()
  for i in range(count):
    yield cameras.orbit(2 * math.pi * i / count, math.radians(elevation_deg), distance, math.radians(fov))


def render_row(view: ObjectView, state: TrainState, count: int = 4) -> np.ndarray:
  """Returns a strip [H, W, 3] of `count` images around the object."""
  row = [view.view(state, camera, view.ambient).rgb for camera in orbit_cameras(view.cameras, count, 15.0)]
  return images.tile(np.stack(row), columns=count)


def write_renders(view: ObjectView, state: TrainState, folder: Path) -> Path:
  """Writes renders.png: colour, normals, depth and opacity from eight azimuths.

  Returns the path.
  """
  # Bare albedo: the row of normals shows the shape.
  shots = [view.view(state, camera, 1.0) for camera in orbit_cameras(view.cameras, 8, 15.0)]
  rgb, normals, depth, opacity = (np.stack([getattr(shot, name) for shot in shots])
                                  for name in ("rgb", "normals", "depth", "opacity"))
  rows = [rgb, images.normal_image(normals, opacity), images.depth_image(depth, opacity),
          np.repeat(opacity[..., None], 3, axis=-1)]
  return images.write_png(images.tile_rows(rows, ["colour", "normals", "depth", "opacity"]), folder / "renders.png")


def write_turntable(view: ObjectView, state: TrainState, folder: Path) -> Path:
  """Writes turntable.mp4, or turntable.gif without an encoder.

  The other file of an earlier run is deleted.
  """
  frames = [view.view(state, camera, view.ambient).rgb for camera in
            orbit_cameras(view.cameras, view.export.turntable_frames, view.export.turntable_elevation_deg)]
  path = video.write_turntable(np.stack(frames), folder / "turntable.mp4")
  _delete(folder, *({*TURNTABLES} - {path.name}))
  return path


def write_outputs(generator: ObjectGenerator, view: ObjectView, state: TrainState, folder: Path,
                  page: ReportPage, timings: dict[str, float]) -> dict[str, float]:
  """Writes all outputs of one object, each file whole or not at all.

  Returns the timings with `export_s`.

  An object without a surface, empty or full, has no mesh; a printed line says so, and all other files are written.

  Args:
    generator: of the object.
    view: renders the object.
    state: of one object.
    folder: of the object.
    page: contents of the report besides the outputs.
    timings: seconds by part of the run.
  """
  written, exported = {}, None
  started = time.perf_counter()
  written["renders"] = write_renders(view, state, folder)
  if view.export.turntable:
    written["turntable"] = write_turntable(view, state, folder)
  else:
    # Otherwise the turntable of an earlier export would pass for this state's.
    _delete(folder, *TURNTABLES)
  own = isinstance(generator, CustomGenerator)
  if view.export.mesh or own:  # files of a user's own need not be meshes
    try:
      exported = generator.export(state.shown, state.occupancy, folder)
    # An object without a surface is a result, not a fault: the other outputs are still written.
    except ValueError as error:
      print(f"no {'files' if own else 'mesh'}: {error}")
  if exported and exported.described:
    print(exported.described)
  for what, paths in exported.files.items() if own and exported else ():
    print(f"  {what}: {', '.join(map(str, paths))}")
  # The mesh of an earlier export would pass for this object's.
  new = {path for paths in exported.files.values() for path in paths} if exported else set()
  _delete(folder, *(name for name in itertools.chain(*MESH_FILES.values()) if folder / name not in new))
  timings = dict(timings, export_s=time.perf_counter() - started)
  report.write_report(
      folder, page.title, mesh=exported.mesh if exported else None, comparison=page.comparison,
      turntable=written.get("turntable"), renders=written["renders"],
      renders_note="colour, normals, depth and opacity from eight azimuths, front first",
      metrics=files.read_metrics(folder / "metrics.jsonl"), config=page.settings, timings=timings,
      versions=versions(), scores=files.read_json(folder / "scores.json") or None)
  return timings


def _delete(folder: Path, *names: str) -> None:
  """Deletes files that an earlier state has left and this state does not make."""
  for name in names:
    run_files.delete(folder / name)


def print_done(started: float, where: Path | str) -> None:
  """Prints the seconds since `started`, and where the result is."""
  print(f"done in {time.perf_counter() - started:.0f} s: {where}")
