"""Many prompts in one run: a file of prompts, folders of scenes, one step over all scenes.

Every scene equals the result of a run of its own with the same seed. Only the number of the step is shared.
"""
from __future__ import annotations

import dataclasses
import os
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
  """Reads the prompts of a UTF-8 text file, one a line.

  Empty lines are skipped.

  Raises:
    ConfigError: the file is missing, is no UTF-8 text, or has no, too many, or too long prompts.
  """
  named = f"config.prompts_file={path!r}"
  if not os.path.isfile(path):
    raise ConfigError(f"{named} is not a file; give a text file with one prompt a line")
  try:
    # Not splitlines, which also splits at form feeds and Unicode separators.
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
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
  """Returns the scenes of these prompts.

  A number distinguishes equal folder names.
  """
  names, counts = [f"{files.prompt_slug(prompt)}-{seed}" for prompt in prompts], Counter()
  folders = []
  for name in names:
    counts[name] += 1
    numbered = name if counts[name] == 1 else f"{name}-{counts[name]}"
    # A numbered name may be the plain name of another prompt.
    while counts[name] > 1 and (numbered in names or numbered in folders):
      counts[name] += 1
      numbered = f"{name}-{counts[name]}"
    folders.append(numbered)
  return SceneList(tuple(prompts), tuple(folders))


SCENES_FILE = "scenes.json"
"""A file in the folder of a run of many scenes: {"prompts": [...], "folders": [...]}."""


def check_same_prompts(prompts_file: str, scenes: SceneList, workdir: Path) -> None:
  """Raises ResumeError if the run in `workdir` has another list of prompts."""
  if files.read_json(workdir / SCENES_FILE).get("prompts") != list(scenes.prompts):
    raise ResumeError(f"the prompts in config.prompts_file={prompts_file!r} differ from the prompts of the "
                      f"checkpoints in {workdir}; give another --workdir, or --config.resume=never to start anew")


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
  """Returns the step of N scenes.

  Groups of `together` scenes are stepped under `vmap`, one group after the other.

  The prior gets one batch of `together` times the views.
  """
  def many(state: TrainState, prior_params: Params, conditions: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
    def one(scene: tuple[TrainState, Any]) -> tuple[TrainState, dict[str, Array]]:
      moved, metrics = step(dataclasses.replace(scene[0], step=state.step), prior_params, scene[1], key)
      return dataclasses.replace(moved, step=None), metrics

    # The number of the step has no axis of scenes: mapped, it would turn every `cond` on it into a `select`.
    scenes = (dataclasses.replace(state, step=None), conditions)
    if together >= jax.tree.leaves(scenes)[0].shape[0]:
      moved, metrics = jax.vmap(one)(scenes)
    else:
      # None instead of 1: a vmap over a single scene would still turn a `cond` on its state into a `select`.
      moved, metrics = jax.lax.map(one, scenes, batch_size=together if together > 1 else None)
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
