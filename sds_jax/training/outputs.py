"""What a run leaves to look at: renders, turntable, mesh and page, made from a state alone."""
from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import trimesh

import sds_jax
from sds_jax.io import files, images, mesh as mesh_lib, report, video
from sds_jax.rendering.render import render_image
from sds_jax.training.state import TrainState
from sds_jax.training.step import Scene
from sds_jax.types import Array, Camera, RenderOutput
from sds_jax.views import cameras
from sds_jax.views.lights import LAMBERTIAN, Shading

ViewFn = Callable[[TrainState, Camera, float], RenderOutput]
"""(state, camera, ambient in [0, 1]) -> an image on white as numpy arrays; ambient 1 is bare albedo."""


def make_view(scene: Scene) -> ViewFn:
  """A compiled renderer of single images of `export.image_size`, lit from above the camera's right shoulder."""
  config = scene.config
  size = config.export.image_size
  options = dataclasses.replace(scene.options, candidates=config.export.num_samples,
                                samples=config.export.num_samples, normals="analytic")

  @jax.jit
  def view(params: Any, grid: Any, camera: Camera, ambient: Array) -> RenderOutput:
    right, up = camera.rotation[:, 0], camera.rotation[:, 1]
    light = camera.position + 0.8 * right + 1.6 * up
    shading = Shading(mode=jnp.int32(LAMBERTIAN), ambient=ambient, diffuse=1.0 - ambient)
    return render_image(scene.field.apply, params["field"], camera, size, size, jnp.ones((size, size, 3)),
                        options=options, grid=grid, light=light, shade=shading)

  def fetch(state: TrainState, camera: Camera, ambient: float) -> RenderOutput:
    return jax.device_get(view(state.shown, state.occupancy, camera, jnp.float32(ambient)))

  return fetch


def orbit_cameras(config: ml_collections.FrozenConfigDict, count: int, elevation_deg: float) -> Iterator[Camera]:
  """`count` cameras around the object from its front on, in the middle of the training distances."""
  distance, fov = (sum(span) / 2 for span in (config.camera.distance, config.camera.fov_deg))
  for i in range(count):
    yield cameras.orbit(2 * math.pi * i / count, math.radians(elevation_deg), distance, math.radians(fov))


def _ambient(config: ml_collections.FrozenConfigDict) -> float:
  """Of renders that are to show the shape too: some of the light comes from the camera's side, but that of an object
  from a picture, whose light lies in its colours."""
  return 1.0 if config.job == "image3d" else 0.5


def render_row(view: ViewFn, config: ml_collections.FrozenConfigDict, state: TrainState, count: int = 4) -> np.ndarray:
  """A strip of `count` images around the object, [H, W, 3], for a look during training."""
  row = [view(state, camera, _ambient(config)).rgb for camera in orbit_cameras(config, count, 15.0)]
  return images.tile(np.stack(row), columns=count)


def write_renders(view: ViewFn, config: ml_collections.FrozenConfigDict, state: TrainState, folder: Path) -> Path:
  """renders.png: colour, normals, depth and opacity from eight azimuths; returns its path."""
  shots = [view(state, camera, 1.0) for camera in orbit_cameras(config, 8, 15.0)]
  rgb, normals, depth, opacity = (np.stack([getattr(shot, name) for shot in shots])
                                  for name in ("rgb", "normals", "depth", "opacity"))
  rows = [rgb, images.normal_image(normals, opacity), images.depth_image(depth, opacity),
          np.repeat(opacity[..., None], 3, axis=-1)]
  return images.write_png(images.tile_rows(rows, ["colour", "normals", "depth", "opacity"]), folder / "renders.png")


def write_turntable(view: ViewFn, config: ml_collections.FrozenConfigDict, state: TrainState, folder: Path) -> Path:
  """turntable.mp4, or .gif where no encoder is installed; the other one of an earlier run goes."""
  e = config.export
  frames = [view(state, camera, _ambient(config)).rgb for camera in
            orbit_cameras(config, e.turntable_frames, e.turntable_elevation_deg)]
  path = video.write_turntable(np.stack(frames), folder / "turntable.mp4")
  for other in {"turntable.mp4", "turntable.gif"} - {path.name}:
    (folder / other).unlink(missing_ok=True)
  return path


def make_mesh(scene: Scene, state: TrainState) -> trimesh.Trimesh:
  """The surface of the field, coloured, in the world frame.

  Raises:
    ValueError: there is no surface (an empty or a full field).
  """
  e, apply = scene.config.export, jax.jit(scene.field.apply)
  params = state.shown["field"]
  return mesh_lib.extract_mesh(
      lambda points: np.asarray(apply(params, jnp.asarray(points, jnp.float32)).density),
      lambda points: np.asarray(apply(params, jnp.asarray(points, jnp.float32)).albedo),
      resolution=e.mesh_resolution, bound=scene.config.field.bound * 1.05, threshold=e.mesh_threshold or "auto")


def _forget(workdir: Path, *names: str) -> None:
  """Files that an earlier state has left and this one does not make."""
  for name in names:
    (workdir / name).unlink(missing_ok=True)


def write_outputs(scene: Scene, view: ViewFn, state: TrainState, workdir: Path, timings: dict[str, float],
                  scores: dict[str, Any] | None = None, beside: Path | None = None) -> dict[str, float]:
  """Everything into `workdir`; each file is written whole or not at all. Returns the timings, export included.

  An object without a surface (empty or full) costs the mesh and a printed warning, not the other files. `beside` is an
  image for the page, of what the object was made from.
  """
  config, written = scene.config, {}
  started = time.perf_counter()
  written["renders"] = write_renders(view, config, state, workdir)
  if config.export.turntable:
    written["turntable"] = write_turntable(view, config, state, workdir)
  else:
    _forget(workdir, "turntable.mp4", "turntable.gif")
  surface = None
  if config.export.mesh:
    try:
      surface = make_mesh(scene, state)
    except ValueError as error:
      print(f"no mesh: {error}")
    else:
      written["glb"], written["obj"] = mesh_lib.write_mesh(surface, workdir)
  if surface is None:
    _forget(workdir, "mesh.glb", "mesh.obj")
  timings = dict(timings, export_s=time.perf_counter() - started)
  report.write_report(
      workdir, title_of(config), mesh=surface, comparison=beside, turntable=written.get("turntable"),
      renders=written["renders"],
      renders_note="colour, normals, depth and opacity from eight azimuths, front first",
      metrics=files.read_metrics(workdir / "metrics.jsonl"), config=config.to_dict(), timings=timings,
      versions=versions(), scores=scores)
  return timings


def title_of(config: ml_collections.FrozenConfigDict) -> str:
  """What an object was made from: its prompt, or the name of its picture."""
  return Path(config.image).name if config.job == "image3d" else config.prompt


def versions() -> dict[str, str]:
  """What the run was made with, for the report and config.json."""
  found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
  return dict(sds_jax=sds_jax.__version__, python=platform.python_version(), **found,
              device=jax.devices()[0].device_kind)
