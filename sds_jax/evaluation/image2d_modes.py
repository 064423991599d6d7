"""What the command does with pictures in each of its modes: one function a mode, (config, folder, start) -> None."""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from sds_jax import compilation, hosts
from sds_jax.evaluation import modes
from sds_jax.io import files, images
from sds_jax.training import image2d, image2d_outputs, jobs, layout as layout_lib, loop
from sds_jax.training.state import TrainState
from sds_jax.training.validation import ConfigError

Config = ml_collections.FrozenConfigDict


def train(config: Config, folder: Path, started: float) -> None:
  """Optimise the pictures and write all outputs into `folder`."""
  compilation.prepare()
  print(f"{config.prompt!r} by {config.generator.name} with seed {config.seed}; everything goes to {folder}")
  studio = image2d.make_studio(config)
  layout = layout_lib.make_layout(config, config.generator.particles * studio.generator.frames)
  prior, prior_params = hosts.run_on_all(lambda: modes.load_prior(config, layout))
  modes.print_choices(config, prior)
  pictures = image2d_outputs.make_pictures(studio)

  def on_render(state: TrainState, step: int) -> None:
    images.write_png(images.tile(pictures(state.shown)), folder / "progress" / f"{step:06d}.png")

  if hosts.is_first():
    (folder / "progress").mkdir(exist_ok=True)
  result = loop.train(config, folder, prior, prior_params, on_render, jobs.pictures(studio, prior), layout)
  if not hosts.shut_down():
    return
  timings = dict(load_s=result.started - started, **result.timings)
  _export(studio, pictures, result.state, folder, timings, started)


def export(config: Config, folder: Path, started: float) -> None:
  """Make all outputs again from the newest checkpoint."""
  studio = image2d.make_studio(config)
  state = modes.newest(config, folder, lambda key: image2d.new_state(studio, key))
  _export(studio, image2d_outputs.make_pictures(studio), state, folder, files.read_json(folder / "timings.json"),
          started)


def _nothing_there(mode: str, reason: str) -> Callable[[Config, Path, float], None]:
  def refuse(config: Config, folder: Path, started: float) -> None:
    raise ConfigError(f"--mode={mode} is for objects (config.job='text3d'), and {folder} holds a run of pictures "
                      f"(config.job={config.job!r}): {reason}")

  return refuse


ACTIONS: dict[str, Callable[[Config, Path, float], None]] = {
    "train": train, "export": export,
    "render": _nothing_there("render", "there are no views to render; --mode=export makes the pictures again"),
    "evaluate": _nothing_there("evaluate", "a picture has no exact scene to be compared with; look at image*.png")}
"""Mode -> what it does."""


def _export(studio: image2d.Studio, pictures: image2d_outputs.PicturesFn, state: TrainState, folder: Path,
            timings: dict[str, Any], started: float) -> None:
  before = time.perf_counter()
  written = image2d_outputs.write_outputs(studio, pictures, state, folder)
  files.write_json(dict(timings, export_s=time.perf_counter() - before), folder / "timings.json")
  print(f"done in {time.perf_counter() - started:.0f} s:")
  for what, paths in written.items():
    print(f"  {what}: {paths[0]}" + (f" to {paths[-1].name}" if len(paths) > 1 else ""))
