"""The modes of image-to-3D: those of text-to-3D (`modes`), with a picture to begin from and to be held against."""
from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
from ml_collections import ConfigDict

from sds_jax import compilation, hosts
from sds_jax.evaluation import image_scores, modes
from sds_jax.io import files, images, pictures
from sds_jax.priors.files import write_atomically
from sds_jax.priors.prior import Prior
from sds_jax.shapeworld import pictures as samples
from sds_jax.training import (
    config as config_lib, image3d, image3d_validation, jobs, layout as layout_lib, loop, outputs, reference,
    step as step_lib, workspace)
from sds_jax.training.checks import ConfigError
from sds_jax.training.state import TrainState

Config = ml_collections.FrozenConfigDict
INPUT, ABOUT = "input.png", "picture.json"
"""The picture as the run took it, and what is known of it; the file itself lies beside them as original.*."""


def train(config: Config, folder: Path, started: float) -> None:
  """Make an object from a picture and write all outputs into `folder`."""
  compilation.prepare()
  print(f"{config.image} with seed {config.seed}; everything goes to {folder}")
  picture = take_picture(config)
  layout = layout_lib.make_layout(config)
  prior, params = hosts.together(lambda: modes.load_prior(config, layout))
  words = None
  if config.loss.words != (0.0,):
    words, params["words"] = hosts.together(lambda: modes.load_prior(told_words(config), layout))
  modes.print_choices(config, prior)
  told = see(config, prior, picture)
  hosts.together(lambda: keep_picture(config, folder, picture, told) if hosts.is_first() else None)
  scene = step_lib.make_scene(config)
  view = outputs.make_view(scene)

  def on_render(state: TrainState, step: int) -> None:
    images.write_png(outputs.render_row(view, config, state), folder / "progress" / f"{step:06d}.png")

  if hosts.is_first():
    (folder / "progress").mkdir(exist_ok=True)
  job = jobs.image3d(config, prior, words, told)
  result = loop.train(config, folder, prior, params, on_render, job=job, layout=layout)
  if not hosts.leave():
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
  truth = samples.read_truth(folder / about["original"])
  if truth is None:
    raise ConfigError(f"--mode=evaluate has no ground truth for config.image={config.image!r}: it is no picture of "
                      "python -m sds_jax.shapeworld.pictures, which keep the scene that they show")
  scene, state = modes.restore(config, folder)
  scores = image_scores.score(scene, state, truth, picture, about["azimuth"], about["elevation"])
  files.write_json(scores, folder / "scores.json")
  _export(scene, state, folder, modes.stored_timings(folder))
  modes.print_scores(scores)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'scores.json'}")


def take_picture(config: Config) -> pictures.Picture:
  """The picture of the settings, at twice the size of the renders, so that nothing of it is lost.

  Raises:
    PictureError: it can't be used.
  """
  size = 2 * max(config.render.height, *(size for _, size in config.render.milestones), 128)
  return pictures.read_picture(config.image, size, config.picture.framing, config.picture.background)


def see(config: Config, prior: Prior, picture: pictures.Picture) -> image3d.Told:
  """What a run knows of its picture; tells the elevation where it is estimated.

  Raises:
    ConfigError: the elevation is to be estimated, and the prior can't.
    PictureError: a map of the picture can't be used.
  """
  seen = prior.sight.see(jnp.asarray(picture.rgb))
  degrees = image3d_validation.elevation_of(config.picture.elevation_deg)
  if degrees is None:
    degrees = math.degrees(float(seen["elevation"]))
    if not math.isfinite(degrees):
      raise ConfigError(f"config.picture.elevation_deg='auto', but the prior {prior.name!r} cannot tell from where a "
                        "picture was taken: give the elevation, such as --config.picture.elevation_deg=10")
    degrees = min(max(degrees, -10.0), 60.0)
    print(f"the picture was taken from an elevation of {degrees:.0f} degrees, as the prior sees it "
          "(--config.picture.elevation_deg=... says better)")
  else:
    print(f"the picture was taken from an elevation of {degrees:.0f} degrees, as config.picture.elevation_deg says")
  opacity = picture.opacity[..., None]
  colours = picture.rgb - (1.0 - opacity)  # times opacity
  told = dict(seen=seen, azimuth=jnp.float32(math.radians(config.picture.azimuth_deg)),
              elevation=jnp.float32(math.radians(degrees)),
              picture=jnp.asarray(np.concatenate([colours, opacity], -1), jnp.float32))
  size = picture.rgb.shape[0]
  for name, channels in (("depth", 1), ("normals", 3)):
    if config.picture[name]:
      values, known = pictures.read_map(config.picture[name], picture.frame, size, channels)
      values = values if name == "depth" else 2.0 * values - 1.0
      told[name] = jnp.asarray(np.concatenate([values, known[..., None]], -1))
  return told


def told_words(config: Config) -> Config:
  """The settings as the prior that is told words is loaded by."""
  changed = ConfigDict(config.to_dict())
  changed.job = "text3d"
  changed.prior.update(name=config.words.prior, path=config.words.path)
  return config_lib.freeze(changed)


def keep_picture(config: Config, folder: Path, picture: pictures.Picture, told: image3d.Told) -> None:
  """Put the picture as it was taken, and what is known of it, into the run's folder.

  Raises:
    WorkdirError: the checkpoints there were made from another picture, and the run is not to start anew.
  """
  if config.resume != "never" and (folder / INPUT).exists() and (folder / "checkpoints").exists():
    before = stored_picture(folder)
    same = before.rgb.shape == picture.rgb.shape and np.abs(before.rgb - picture.rgb).max() <= 0.02
    if not same and any((folder / "checkpoints").iterdir()):
      raise workspace.WorkdirError(
          f"config.image={config.image!r} is taken as another picture than that from which the checkpoints in {folder} "
          f"were made, {folder / INPUT}; give another --workdir, or use --config.resume=never to start anew there")
  opacity = picture.opacity[..., None]
  straight = np.where(opacity > 0, (picture.rgb - 1.0 + opacity) / np.maximum(opacity, 1e-6), 1.0)
  rgba = np.concatenate([np.clip(straight, 0.0, 1.0), opacity], -1)
  images.write_png(rgba, folder / INPUT)
  original = "original" + Path(config.image).suffix.lower()
  write_atomically(folder / original, lambda place: shutil.copyfile(config.image, place))
  files.write_json(dict(image=config.image, original=original, elevation=float(told["elevation"]),
                        azimuth=float(told["azimuth"]), frame=picture.frame._asdict()), folder / ABOUT)


def stored_picture(folder: Path) -> pictures.Picture:
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
  return pictures.Picture(rgba[..., :3] * opacity[..., None] + (1.0 - opacity[..., None]), opacity,
                          pictures.Frame(**about["frame"]))


def _export(scene: step_lib.Scene, state: TrainState, folder: Path, timings: dict[str, float],
            view: outputs.ViewFn | None = None) -> None:
  """All outputs, and the picture beside the object seen from there."""
  view = view or outputs.make_view(scene)
  about, picture = files.read_json(folder / ABOUT), stored_picture(folder)
  camera = jax.tree.map(lambda leaf: leaf[0], reference.camera(
      scene.config, dict(azimuth=jnp.float32(about["azimuth"]), elevation=jnp.float32(about["elevation"]))))
  out = view(state, camera, 1.0)
  size = out.rgb.shape[0]
  given = pictures.resized(picture.rgb, size)
  mask = np.repeat(pictures.resized(picture.opacity[..., None], size), 3, -1)
  rows = [[given, mask], [out.rgb, np.repeat(out.opacity[..., None], 3, -1)]]
  beside = images.write_png(images.tile_rows(rows, ["picture", "object"], titles=("", "colour", "opacity")),
                            folder / "reference.png")
  modes.export_state(scene, state, folder, timings, view, beside)


ACTIONS = {"train": train, "export": export, "render": modes.render, "evaluate": evaluate}
