"""Many prompts in one run: a file of prompts, a folder for each scene, and one step over all scenes.

Every scene equals the result of a run of its own with the same seed. Only the number of the step is shared.
"""
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.io import files
from sds_jax.schema import ConfigError
from sds_jax.training.state import TrainState
from sds_jax.training.step import StepFn
from sds_jax.training.workspace import ResumeError
from sds_jax.types import Array, Params

MOST_PROMPTS, LONGEST_PROMPT = 100_000, 10_000


@dataclasses.dataclass(frozen=True)
class SceneList:
  """The scenes of a run.

  Attributes:
    prompts: one for each scene.
    folders: one for each scene, relative to the run's folder.
  """
  prompts: tuple[str, ...]
  folders: tuple[str, ...]


def read_prompts(path: str) -> tuple[str, ...]:
  """Reads the prompts of a UTF-8 text file, one a line, and skips empty lines.

  Raises:
    ConfigError: there is no such file, it is no text, or it has no prompts, too many, or too long ones.
  """
  named = f"config.prompts_file={path!r}"
  if not Path(path).is_file():
    raise ConfigError(f"{named} is not a file; give a text file with one prompt a line")
  try:
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # by nothing else: prompts may have strange spaces
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{named} cannot be read as UTF-8 text ({error}); give a text file with one prompt a line"
                      ) from error
  prompts = tuple(line.strip() for line in lines if line.strip())
  if not 0 < len(prompts) <= MOST_PROMPTS:
    raise ConfigError(f"{named} has {len(prompts)} prompts: it must have from 1 to {MOST_PROMPTS}, one a line")
  for prompt in prompts:
    if len(prompt) > LONGEST_PROMPT:
      raise ConfigError(f"{named} has a prompt of {len(prompt)} characters, {prompt[:40]!r}...: at most "
                        f"{LONGEST_PROMPT} are legal")
  return prompts


def make_scenes(prompts: Sequence[str], seed: int) -> SceneList:
  """Returns the scenes of these prompts; a number distinguishes equal folder names."""
  names, seen = [f"{files.prompt_slug(prompt)}-{seed}" for prompt in prompts], Counter()
  folders = []
  for name in names:
    seen[name] += 1
    numbered = name if seen[name] == 1 else f"{name}-{seen[name]}"
    while seen[name] > 1 and (numbered in names or numbered in folders):
      seen[name] += 1
      numbered = f"{name}-{seen[name]}"
    folders.append(numbered)
  return SceneList(tuple(prompts), tuple(folders))


SCENES_FILE = "scenes.json"
"""In the folder of a run of many: {"prompts": [...], "folders": [...]}."""


def check_same_prompts(prompts_file: str, scenes: SceneList, workdir: Path) -> None:
  """Raises ResumeError if the run in `workdir` has another list of prompts."""
  if files.read_json(workdir / SCENES_FILE).get("prompts") != list(scenes.prompts):
    raise ResumeError(f"the prompts in config.prompts_file={prompts_file!r} are not those that the checkpoints "
                      f"in {workdir} were made with; give another --workdir, or --config.resume=never to start anew")


def write_scene_list(scenes: SceneList, workdir: Path) -> None:
  """Writes SCENES_FILE."""
  files.write_json(dataclasses.asdict(scenes), workdir / SCENES_FILE)


def stacked(trees: Sequence[Any]) -> Any:
  """Returns N trees of equal structure as one tree with leaves [N, ...]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def repeated(state: TrainState, count: int) -> TrainState:
  """Returns one state repeated for `count` scenes: leaves [count, ...] except `step`."""
  many = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), dataclasses.replace(state, step=None))
  return dataclasses.replace(many, step=state.step)


def pick(state: TrainState, number: int) -> TrainState:
  """Returns the state of one scene, as of a run of its own."""
  one = jax.tree.map(lambda leaf: leaf[number], dataclasses.replace(state, step=None))
  return dataclasses.replace(one, step=state.step)


def put_back(state: TrainState, number: int, one: TrainState) -> TrainState:
  """Replaces scene `number` of `state` (numpy arrays, changed in place) and returns `state`."""
  def assign(leaf: Any, value: Any) -> None:
    leaf[number] = value

  jax.tree.map(assign, dataclasses.replace(state, step=None), dataclasses.replace(one, step=None))
  return state


def over_scenes(step: StepFn, together: int) -> StepFn:
  """Returns the step of N scenes: `together` scenes at a time under `vmap`, one group after the other.

  The prior gets one batch of `together` times the views.
  """
  def many(state: TrainState, prior_params: Params, conditions: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
    def one(scene: tuple[TrainState, Any]) -> tuple[TrainState, dict[str, Array]]:
      moved, metrics = step(dataclasses.replace(scene[0], step=state.step), prior_params, scene[1], key)
      return dataclasses.replace(moved, step=None), metrics

    every = (dataclasses.replace(state, step=None), conditions)
    if together >= jax.tree.leaves(every)[0].shape[0]:
      moved, metrics = jax.vmap(one)(every)
    else:
      moved, metrics = jax.lax.map(one, every, batch_size=together if together > 1 else None)
    return dataclasses.replace(moved, step=state.step + 1), metrics

  return many


def scenes_at_a_time(together: int, scenes: int) -> int:
  """Returns the number of scenes that a device optimises at a time.

  Args:
    together: `parallel.together`; 0: all, -1: chosen by the backend. CPUs take one at a time, which keeps its arrays in
      the cache.
    scenes: number of scenes of the run.
  """
  if together == -1:
    return 1 if jax.default_backend() == "cpu" else scenes
  return min(together or scenes, scenes)
