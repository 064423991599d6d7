"""What the command does with a file of prompts in each mode; every scene's folder is that of a run of its own."""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from ml_collections import ConfigDict

from sds_jax import compilation, hosts
from sds_jax.evaluation import modes
from sds_jax.io import files, images
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.training import (
    divergence, jobs, layout as layout_lib, loop, outputs, resume, scenes as scenes_lib, step as step_lib, workspace)
from sds_jax.training.checks import ConfigError
from sds_jax.training.state import TrainState

Config = ml_collections.FrozenConfigDict


def train(config: Config, folder: Path, started: float) -> None:
  """Optimise an object for each prompt, all at once, and write all outputs of each into a folder of its own.

  Raises:
    Diverged: of some scene, when the others are finished and written.
  """
  compilation.prepare()
  prompts = hosts.run_on_all(lambda: scenes_lib.read_prompts(config.prompts_file))
  scenes, layout = scenes_lib.make_scenes(prompts, config.seed), layout_lib.scenes_layout(config, len(prompts))
  print(f"{len(prompts)} prompts of {config.prompts_file} with seed {config.seed}; everything goes to {folder}")
  prior, prior_params = hosts.run_on_all(lambda: modes.load_prior(config, layout, prompts))
  modes.print_choices(config, prior)
  scene = step_lib.make_scene(config)
  view = outputs.make_view(scene)

  def on_render(state: TrainState, step: int) -> None:
    for number, name in enumerate(scenes.folders):
      row = outputs.render_row(view, config, scenes_lib.pick(state, number))
      images.write_png(row, folder / name / "progress" / f"{step:06d}.png")

  result = loop.train(config, folder, prior, prior_params, on_render, jobs.many(config, prior, scenes), layout)
  if not hosts.shut_down():
    return
  timings = dict(load_s=result.started - started, **result.timings)
  for number, name in enumerate(scenes.folders):
    print(f"{number + 1} of {len(prompts)}: {prompts[number]!r}", flush=True)
    own, one = _own(config, prompts[number]), scenes_lib.pick(result.state, number)
    workspace.store_config(folder / name, own, outputs.versions(), prior.source.as_dict())
    _store(own, folder / name, one)
    modes.export_state(step_lib.make_scene(own), jax.device_put(one), folder / name, timings, view)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder}/*/report.html")
  if result.given_up:
    lost = ", ".join(scenes.folders[number] for number in result.given_up)
    raise divergence.gave_up(config, config.training.steps, f"{lost} in {folder}; the other scenes are well")


def _own(config: Config, prompt: str) -> Config:
  """The settings of a run that makes only this scene."""
  changed = ConfigDict(config.to_dict())
  changed.update(prompt=prompt, prompts_file="", workdir="")
  return ml_collections.FrozenConfigDict(changed)


def _store(config: Config, folder: Path, state: TrainState) -> None:
  """The finished state as the checkpoint of the scene's folder."""
  with Checkpoints(folder / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    checkpoints.clear()
    checkpoints.save(int(state.step), state, dict(config=config.to_dict(), versions=outputs.versions(),
                                                  in_a_row=[int(np.asarray(state.health["in_a_row"]))]))


def _hand_out(config: Config, folder: Path, stored: dict[str, list[str]]) -> None:
  """Give each scene its part of the run's newest checkpoint, unless it has it: a run may have been stopped."""
  with Checkpoints(folder / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    found = checkpoints.restore_newest(lambda there: there)
  if found is None:
    return
  step, state = found
  for number, (prompt, name) in enumerate(zip(stored["prompts"], stored["folders"])):
    with Checkpoints(folder / name / "checkpoints", config.training.keep_checkpoints) as own:
      if own.latest_step() == step:
        continue
      own.clear()
      one = {part: tree if part == "step" else jax.tree.map(lambda leaf: np.asarray(leaf)[number], tree)
             for part, tree in state.items()}
      own.save(step, one, dict(config=_own(config, prompt).to_dict(), versions=outputs.versions(), in_a_row=[0]))
    if not (folder / name / "config.json").exists():
      workspace.store_config(folder / name, _own(config, prompt), outputs.versions())


def _in_each(action: Callable[[Config, Path, float], None]) -> Callable[[Config, Path, float], None]:
  def over(config: Config, folder: Path, started: float) -> None:
    """The same of every scene; one that cannot be done is told and passed over."""
    stored = files.read_json(folder / scenes_lib.SCENES_FILE)
    if not stored:
      raise workspace.WorkdirError(f"{folder} has no {scenes_lib.SCENES_FILE}: its run has not begun its steps")
    _hand_out(config, folder, stored)
    left_out = 0
    for prompt, name in zip(stored["prompts"], stored["folders"]):
      print(f"{name}:")
      try:
        action(_own(config, prompt), folder / name, started)
      except (ConfigError, workspace.WorkdirError, resume.ResumeError, files.DamagedFileError) as error:
        print(f"  left out: {error}")
        left_out += 1
    if left_out == len(stored["folders"]):
      raise workspace.WorkdirError(f"none of the {left_out} scenes in {folder} could be done; each says why above")

  return over


ACTIONS: dict[str, Callable[[Config, Path, float], None]] = {
    "train": train, "export": _in_each(modes.export), "render": _in_each(modes.render),
    "evaluate": _in_each(modes.evaluate)}
"""Mode -> what it does."""
