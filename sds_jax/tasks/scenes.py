"""Many objects at once from a file of prompts.

Each scene gets a folder like that of a separate run.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sds_jax import hosts, schema
from sds_jax.io import files, images
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior
from sds_jax.schema import ConfigError
from sds_jax.settings.text3d import Text3D
from sds_jax.tasks import outputs
from sds_jax.tasks.task import OpenRun
from sds_jax.tasks.text3d import Text3DTask
from sds_jax.training import divergence, scenes as scenes_lib, workspace
from sds_jax.training.layout import make_scene_layout
from sds_jax.training.loop import RunResult
from sds_jax.training.parallel import Share
from sds_jax.training.program import Program, no_sheets
from sds_jax.training.resume import ResumeError
from sds_jax.training.scenes import SceneList
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState
from sds_jax.training.step import StepFn
from sds_jax.training.versions import versions
from sds_jax.training.workspace import WorkdirError
from sds_jax.types import Array, Params

SCENE_ERRORS = (ConfigError, WorkdirError, ResumeError, files.DamagedFileError)
"""Errors that leave out one scene from export, rendering or evaluation; the other scenes continue."""


class ScenesTask:
  """A run of text-to-3D over a file of prompts.

  Attributes:
    settings: the validated tree.
    one: the task of a single scene, whose generator and renderer all scenes share.
  """

  def __init__(self, settings: Text3D):
    """Keeps the settings."""
    self.settings, self.one = settings, Text3DTask(settings)

  @property
  def run_name(self) -> str:
    """The name of the file of prompts as a name of a folder."""
    return files.prompt_slug(Path(self.settings.prompts_file).stem)

  @functools.cached_property
  def scenes(self) -> SceneList:
    """The scenes of the file; every process reads the file itself."""
    prompts = scenes_lib.read_prompts(self.settings.prompts_file)
    return scenes_lib.make_scenes(prompts, self.settings.seed)

  @property
  def headline(self) -> str:
    """The number of prompts, their file, and the seed."""
    return f"{len(self.scenes.prompts)} prompts of {self.settings.prompts_file} with seed {self.settings.seed}"

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that the run may write.

    A scene's folder has the names of a run of one object.
    """
    scenes = self.stored_scenes(folder) if folder else self.scenes
    inner = self.one.outputs()
    return {**workspace.LAYOUT, scenes_lib.SCENES_FILE: None, **{name: inner for name in scenes.folders}}

  def user_files(self, folder: Path) -> dict[str, str]:
    """Returns the file of prompts."""
    del folder
    return {"prompts_file": self.settings.prompts_file}

  def stored_scenes(self, folder: Path) -> SceneList:
    """Returns the scenes of a finished or interrupted run.

    The names of the folders are made from the prompts.

    Raises:
      WorkdirError: the run has not begun its steps, or its list of scenes was changed.
    """
    path = folder / scenes_lib.SCENES_FILE
    stored = files.read_json(path)
    if not stored:
      raise WorkdirError(f"{folder} has no {scenes_lib.SCENES_FILE}: its run has not begun its steps")
    prompts = stored.get("prompts")
    if isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts):
      scenes = scenes_lib.make_scenes(prompts, self.settings.seed)
      # Made anew and compared, so that a changed file leads to no folder outside of the run.
      if stored.get("folders") == list(scenes.folders):
        return scenes
    raise WorkdirError(f"{path} is not as a run has written it: its folders are not those of its prompts; was it "
                       "changed?")

  def read_inputs(self) -> SceneList:
    """Reads and checks the file of prompts."""
    return self.scenes

  def check(self) -> None:
    """Opens the prior and checks devices and all prompts, but reads no weights."""
    # Not one.check(): whole scenes are spread over the devices here, so a scene's views need not fit them.
    make_scene_layout(self.settings.parallel, len(self.scenes.prompts))
    self.one.prompts = self.scenes.prompts
    _ = self.one.generator, self.one.opened

  def open(self, inputs: Any = None) -> OpenRun:
    """Loads the prior and makes the program of all scenes."""
    del inputs
    # Every process reads the file; if one cannot, all end.
    prompts = hosts.run_on_all(lambda: self.scenes.prompts)
    layout = make_scene_layout(self.settings.parallel, len(prompts))
    self.one.prompts = prompts
    prior, params = hosts.run_on_all(lambda: self.one.load_prior(layout))
    return OpenRun(self.program(prior), prior, params, layout)

  def program(self, prior: Prior) -> Program:
    """Returns the functions of all scenes.

    State and conditions have a leading axis of scenes.
    """
    one, scenes, count = self.one.program(prior), self.scenes, len(self.scenes.prompts)

    def embed() -> Any:
      return scenes_lib.stacked([self.one.embed(prior, prompt) for prompt in scenes.prompts])

    def begin(params: Params, conditions: Any, key: Array, source: TrainState | None) -> TrainState:
      # All scenes begin with equal parameters; of the conditions only shapes matter to a new state.
      first = jax.tree.map(lambda leaf: leaf[0], conditions)
      return scenes_lib.repeated(one.begin(params, first, key, source), count)

    def make_step(stage: Stage, share: Share) -> StepFn:
      together = scenes_lib.scenes_at_a_time(self.settings.parallel.together, count)
      return scenes_lib.over_scenes(one.make_step(stage, share), together)

    return dataclasses.replace(
        one, new_state=lambda key: scenes_lib.repeated(one.new_state(key), count), begin=begin, embed=embed,
        # together=1: a scene lies on one device with all its views.
        make_step=make_step, sheets=no_sheets, together=1, scenes=scenes,
        check_inputs=functools.partial(scenes_lib.check_same_prompts, self.settings.prompts_file, scenes),
        keep_inputs=functools.partial(scenes_lib.write_scene_list, scenes))

  def scene(self, prompt: str) -> Text3DTask:
    """Returns the task of a run that makes only this scene.

    All scenes share generator and renderer.
    """
    # `prompts_file` is empty, so that the folder of a scene is that of a run of its own.
    task = Text3DTask(dataclasses.replace(self.settings, prompt=prompt, prompts_file="", workdir=""))
    # Set in place of the cached properties, so that no scene compiles a renderer of its own.
    task.generator, task.view = self.one.generator, self.one.view
    return task

  def preview(self, state: TrainState, folder: Path, step: int) -> None:
    """Writes a strip of renders of each scene into the scene's folder."""
    for number, name in enumerate(self.scenes.folders):
      row = outputs.render_row(self.one.view, scenes_lib.pick(state, number))
      images.write_png(row, folder / name / "progress" / f"{step:06d}.png")

  def finish(self, result: RunResult, folder: Path, timings: dict[str, float], started: float) -> None:
    """Writes settings, checkpoint and all outputs of each scene into its folder.

    Raises:
      Diverged: a scene was given up; the other scenes are written.
    """
    prompts, folders = self.scenes.prompts, self.scenes.folders
    source = files.read_json(folder / "config.json").get("prior_source")
    for number, (prompt, name) in enumerate(zip(prompts, folders)):
      print(f"{number + 1} of {len(prompts)}: {prompt!r}", flush=True)
      task, state = self.scene(prompt), scenes_lib.pick(result.state, number)
      workspace.store_settings(folder / name, schema.to_dict(task.settings), versions(), source)
      _save(task, folder / name, int(state.step), state, int(np.asarray(state.health["in_a_row"])))
      if divergence.is_untouched(state.health, int(state.step)):
        print("  none of its updates was finite; no outputs are written")
        continue
      # Copied to the device once: numpy arrays would be transferred again for every image.
      task.write(jax.device_put(state), folder / name, timings)
    outputs.print_done(started, f"{folder}/*/report.html")
    # Last, so that the other scenes are on the disk by now.
    if result.given_up:
      lost = ", ".join(folders[number] for number in result.given_up)
      raise divergence.gave_up(self.settings.divergence, self.settings.training.steps,
                               f"{lost} in {folder}; the other scenes are finished")

  def in_each(self, folder: Path, action: Callable[[Text3DTask, Path], None]) -> None:
    """Calls action(task of the scene, its folder) for every scene.

    A scene that fails is printed and left out.

    Raises:
      WorkdirError: no scene could be done, or the run has not begun its steps.
    """
    scenes = self.stored_scenes(folder)
    pairs = list(zip(scenes.prompts, scenes.folders))
    self._split_checkpoint(folder, pairs)
    left_out = 0
    for prompt, name in pairs:
      print(f"{name}:")
      try:
        action(self.scene(prompt), folder / name)
      except SCENE_ERRORS as error:
        print(f"  left out: {error}")
        left_out += 1
    if left_out == len(pairs):
      raise WorkdirError(f"none of the {left_out} scenes in {folder} could be done; each says why above")

  def _split_checkpoint(self, folder: Path, scenes: Sequence[tuple[str, str]]) -> None:
    """Writes each scene's part of the newest checkpoint to the scene's folder.

    A stopped run has not done so.
    """
    keep = self.settings.training.keep_checkpoints
    with Checkpoints(folder / "checkpoints", keep) as checkpoints:
      # In its own structure, so that no prior has to be opened for it.
      newest = checkpoints.restore_newest(lambda tree: tree)
    if newest is None:
      return
    step, state = newest
    for number, (prompt, name) in enumerate(scenes):
      task = self.scene(prompt)
      with Checkpoints(folder / name / "checkpoints", keep) as checkpoints:
        # A finished run has written the scene's checkpoint itself.
        if checkpoints.latest_step() == step:
          continue
      pick = functools.partial(lambda number, leaf: np.asarray(leaf)[number], number)
      # All scenes have the number of the step in common.
      one = {part: tree if part == "step" else jax.tree.map(pick, tree) for part, tree in state.items()}
      _save(task, folder / name, step, one, 0)
      if not (folder / name / "config.json").exists():
        workspace.store_settings(folder / name, schema.to_dict(task.settings), versions())


def _save(task: Text3DTask, folder: Path, step: int, state: Any, in_a_row: int) -> None:
  """Writes a state as the only checkpoint of a scene's folder."""
  settings = task.settings
  with Checkpoints(folder / "checkpoints", settings.training.keep_checkpoints) as checkpoints:
    # A checkpoint of an earlier run in this folder would pass for the newest.
    checkpoints.clear()
    # A list, because checkpoints have a count for each scene.
    checkpoints.save(step, state, dict(config=schema.to_dict(settings), versions=versions(), in_a_row=[in_a_row]))
