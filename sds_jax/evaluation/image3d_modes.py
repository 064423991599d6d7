"""The modes of image-to-3D: those of text-to-3D (`modes`), with a picture to begin from and to be held against."""
from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from sds_jax import compilation, hosts
from sds_jax.evaluation import image_scores, modes
from sds_jax.io import files, images, photos
from sds_jax.priors.loading.files import write_atomically
from sds_jax.priors.prior import Prior
from sds_jax.shapeworld import sample_photos
from sds_jax.training import (
    image3d, image3d_validation, jobs, layout as layout_lib, loop, outputs, reference, step as step_lib, workspace)
from sds_jax.training.checks import ConfigError
from sds_jax.training.state import TrainState
from sds_jax.types import Params

Config = ml_collections.FrozenConfigDict
INPUT, ABOUT = "input.png", "picture.json"
"""The picture as the run took it, and what is known of it; beside them the files: original.*, depth.*, normals.*."""
LEAST_KNOWN = 0.05
"""Share of the object that a map must know."""


class Taken(NamedTuple):
  """The picture of the settings as process 0 has taken it.

  Attributes:
    picture: with how it was moved.
    shown: what the steps want of it, float32: `picture` [S, S, 4], colours times opacity, and opacity; and of the maps
      that are given `depth` (or `disparity`) [S, S, 2] and `normals` [S, S, 4], as `reference.losses` has them.
  """
  picture: photos.Photo
  shown: dict[str, np.ndarray]


def train(config: Config, folder: Path, started: float, taken: Taken | None = None) -> None:
  """Make an object from a picture and write all outputs into `folder`.

  Args:
    taken: of `take`, in process 0, which tells the others.
  """
  compilation.prepare()
  print(f"{config.image} with seed {config.seed}; everything goes to {folder}")
  shown = hosts.broadcast_result(_shapes(config), lambda: taken.shown)
  layout = layout_lib.make_layout(config)
  prior, words, params = load_priors(config, layout)
  modes.print_choices(config, prior)
  told = hosts.broadcast(hosts.run_on_all(lambda: see(config, prior, shown)))
  scene = step_lib.make_scene(config)
  view = outputs.make_view(scene)

  def on_render(state: TrainState, step: int) -> None:
    images.write_png(outputs.render_row(view, config, state), folder / "progress" / f"{step:06d}.png")

  if hosts.is_first():
    (folder / "progress").mkdir(exist_ok=True)
  job = dataclasses.replace(
    jobs.image3d(config, prior, words, told), check=lambda workdir: check_same(config, workdir),
    keep=lambda workdir: keep_picture(config, workdir, taken.picture, told))
  result = loop.train(config, folder, prior, params, on_render, job=job, layout=layout)
  if not hosts.shut_down():
    return
  timings = dict(load_s=result.started - started, **result.timings)
  _export(scene, result.state, folder, timings, view)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'report.html'}")


def export(config: Config, folder: Path, started: float) -> None:
  """Make all outputs again from the newest checkpoint."""
  scene, state = modes.restore(config, folder)
  _export(scene, state, folder, modes.stored_timings(folder))
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'report.html'}")


def evaluate(config: Config, folder: Path, started: float) -> None:
  """Score the object against the scene that its picture was rendered from; write scores.json and the report.

  Raises:
    ConfigError: the picture does not say which, so there is no ground truth.
  """
  picture, about = stored_picture(folder), files.read_json(folder / ABOUT)
  truth = sample_photos.read_truth(folder / about["original"])
  if truth is None:
    raise ConfigError(f"--mode=evaluate has no ground truth for config.image={config.image!r}: it is no picture of "
                      "python -m sds_jax.shapeworld.sample_photos, which keep the scene that they show")
  scene, state = modes.restore(config, folder)
  scores = image_scores.score(scene, state, truth, picture, about["azimuth"], about["elevation"])
  files.write_json(scores, folder / "scores.json")
  _export(scene, state, folder, modes.stored_timings(folder))
  modes.print_scores(scores)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'scores.json'}")


def take(config: Config) -> Taken:
  """The picture of the settings and its maps, finer than the renders, so that nothing of them is lost.

  Raises:
    PictureError: one of them can't be used.
  """
  size = _size(config)
  picture = photos.read_photo(config.image, size, config.picture.framing, config.picture.background)
  opacity = picture.opacity[..., None]
  shown = dict(picture=np.concatenate([picture.rgb - (1.0 - opacity), opacity], -1))
  for name, (path, channels) in _maps(config).items():
    values, known = photos.read_map(path, picture.frame, size, channels)
    values, known = (2.0 * values - 1.0 if name == "normals" else values), known[..., None] * opacity
    if known.sum() < LEAST_KNOWN * opacity.sum():
      raise photos.PictureError(f"{path} is transparent where {config.image} shows the object")
    shown[name] = np.concatenate([values * known, known], -1)
  return Taken(picture, {name: np.asarray(values, np.float32) for name, values in shown.items()})


def _maps(config: Config) -> dict[str, tuple[str, int]]:
  """What the maps that are given hold -> (file, channels)."""
  maps = {config.picture.depth_is: (config.picture.depth, 1), "normals": (config.picture.normals, 3)}
  return {name: (path, channels) for name, (path, channels) in maps.items() if path}


def _size(config: Config) -> int:
  return 2 * max(config.render.height, *(size for _, size in config.render.milestones), 128)


def _shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Of `Taken.shown`, as every process knows them from the settings."""
  size, channels = _size(config), {name: count + 1 for name, (_, count) in _maps(config).items()}
  return {name: jax.ShapeDtypeStruct((size, size, count), jnp.float32)
          for name, count in {"picture": 4, **channels}.items()}


def load_priors(config: Config, layout: layout_lib.Layout | None = None) -> tuple[Prior, Prior | None, Params]:
  """The prior that is told the picture, the one that is told words where `loss.words` is on, and their parameters,
  the second's as `words`. All is checked before weights are read.

  Raises:
    ConfigError: a prior does not do, or can't estimate the elevation, or has never seen views from such a camera.
    CheckpointError: files are missing or damaged.
  """
  prior, weights = hosts.run_on_all(lambda: modes.open_prior(config))
  words = None
  if config.loss.words != (0.0,):
    words, more = hosts.run_on_all(lambda: modes.open_prior(image3d.words_config(config), group="words"))
  _check_sight(config, prior)
  params = hosts.run_on_all(lambda: modes.load_weights(weights, layout))
  if words:
    params["words"] = hosts.run_on_all(lambda: modes.load_weights(more, layout))
  return prior, words, params


def _check_sight(config: Config, prior: Prior) -> None:
  if config.picture.elevation_deg.strip() == "auto" and not prior.sight.tells_elevation:
    raise ConfigError(f"config.picture.elevation_deg='auto', but the prior {prior.name!r} cannot tell from where a "
                      "picture was taken: give the elevation, such as --config.picture.elevation_deg=10")
  if prior.sight.camera:
    for name, only in zip(("distance", "fov_deg"), prior.sight.camera):
      if not math.isclose(config.camera[name][0], only, rel_tol=1e-3):
        raise ConfigError(f"config.camera.{name}={config.camera[name]!r}, but the prior {prior.name!r} has seen views "
                          f"from one camera only, and would take this for another object: leave it at {(only, only)}")


def see(config: Config, prior: Prior, shown: dict[str, Any]) -> image3d.Told:
  """What a run knows of its picture, of which it is shown `Taken.shown`; says the elevation."""
  picture = jnp.asarray(shown["picture"])
  seen = prior.sight.see(picture[..., :3] + 1.0 - picture[..., 3:])  # on white
  degrees = image3d_validation.told_elevation(config.picture.elevation_deg)
  if degrees is None:
    degrees = min(max(math.degrees(float(seen["elevation"])), -10.0), 60.0)
    print(f"the picture was taken from an elevation of {degrees:.0f} degrees, as the prior sees it "
          "(--config.picture.elevation_deg=... says better)")
  else:
    print(f"the picture was taken from an elevation of {degrees:.0f} degrees, as config.picture.elevation_deg says")
  return dict(seen=seen, azimuth=jnp.float32(math.radians(config.picture.azimuth_deg)),
              elevation=jnp.float32(math.radians(degrees)), **jax.tree.map(jnp.asarray, shown))


def _given(config: Config) -> dict[str, tuple[str, str]]:
  """What the user gave, or could have given: kind -> (setting, file or "")."""
  given = {"original": ("image", config.image), "depth": ("picture.depth", config.picture.depth),
           "normals": ("picture.normals", config.picture.normals)}
  return {kind: (setting, os.path.expanduser(path)) for kind, (setting, path) in given.items()}


def check_same(config: Config, folder: Path) -> None:
  """Raise ResumeError where the run in `folder` was made from another picture, or other maps of it."""
  about = files.read_json(folder / ABOUT)
  for kind, (setting, path) in _given(config).items():
    if kind not in about or (about[kind] and not (folder / about[kind]).is_file()):
      continue
    before = folder / about[kind] if about[kind] else None
    if (before.read_bytes() if before else None) != (Path(path).read_bytes() if path else None):
      raise workspace.ResumeError(
          f"config.{setting}={path!r} is another picture than that from which the checkpoints in {folder} were made, "
          f"{before or 'which was none'}; give another --workdir, or use --config.resume=never to start anew there")


def keep_picture(config: Config, folder: Path, picture: photos.Photo, told: image3d.Told) -> None:
  """Put the picture as it was taken, and what is known of it, into the run's folder."""
  opacity = picture.opacity[..., None]
  straight = np.where(opacity > 0, (picture.rgb - 1.0 + opacity) / np.maximum(opacity, 1e-6), 1.0)
  rgba = np.concatenate([np.clip(straight, 0.0, 1.0), opacity], -1)
  images.write_png(rgba, folder / INPUT)
  before = files.read_json(folder / ABOUT)
  kept = {kind: path and kind + Path(path).suffix.lower() for kind, (_, path) in _given(config).items()}
  for kind, (_, path) in _given(config).items():
    if path:
      write_atomically(folder / kept[kind], functools.partial(shutil.copyfile, path))
  for name in {before.get(kind) for kind in kept} - {None, "", *kept.values()}:  # put here by an earlier run
    (folder / name).unlink(missing_ok=True)
  files.write_json(dict(kept, image=config.image, elevation=float(told["elevation"]), azimuth=float(told["azimuth"]),
                        frame=picture.frame._asdict()), folder / ABOUT)


def stored_picture(folder: Path) -> photos.Photo:
  """The picture as a run took it, and how it had been moved.

  Raises:
    WorkdirError: it is not there.
  """
  about = files.read_json(folder / ABOUT)
  if not about or not (folder / INPUT).exists():
    raise workspace.WorkdirError(f"{folder} holds no {INPUT} and {ABOUT}: its run has not begun its steps")
  with Image.open(folder / INPUT) as image:
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255.0
  opacity = rgba[..., 3]
  return photos.Photo(rgba[..., :3] * opacity[..., None] + (1.0 - opacity[..., None]), opacity,
                          photos.Frame(**about["frame"]))


def _export(scene: step_lib.Scene, state: TrainState, folder: Path, timings: dict[str, float],
            view: outputs.ViewFn | None = None) -> None:
  """All outputs, and the picture beside the object seen from there."""
  view = view or outputs.make_view(scene)
  about, picture = files.read_json(folder / ABOUT), stored_picture(folder)
  camera = jax.tree.map(lambda leaf: leaf[0], reference.camera(
      scene.config, dict(azimuth=jnp.float32(about["azimuth"]), elevation=jnp.float32(about["elevation"]))))
  out = view(state, camera, 1.0)
  size = out.rgb.shape[0]
  given = photos.resize_square(picture.rgb, size)
  mask = np.repeat(photos.resize_square(picture.opacity[..., None], size), 3, -1)
  rows = [[given, mask], [out.rgb, np.repeat(out.opacity[..., None], 3, -1)]]
  beside = images.write_png(images.tile_rows(rows, ["picture", "object"], titles=("", "colour", "opacity")),
                            folder / "reference.png")
  modes.export_state(scene, state, folder, timings, view, beside)


ACTIONS = {"train": train, "export": export, "render": modes.render, "evaluate": evaluate}
