"""What differs between the jobs, as `loop.train` is given it; the loop itself knows of no renders and no pictures."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections

from sds_jax.priors.prior import Prior
from sds_jax.training import (
    conditions, image2d, image3d as image3d_lib, inspect_guidance, particles, scenes as scenes_lib,
    stages as stages_lib, step as step_lib)
from sds_jax.training.parallel import Share
from sds_jax.training.scenes import Scenes
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState
from sds_jax.training.update import StepFn
from sds_jax.types import Array, Params

LookFn = Callable[[TrainState, int], None]
"""(state, step); must not keep the state."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A run, as functions.

  Attributes:
    stages: in order, one program each; the first begins at step 0.
    new_state: (key) -> a new state, without what the estimator keeps; pure.
    begin: (prior_params, or their shapes; text, key, source or None) -> the state before the first update, with it;
      pure.
    text: () -> what the prior is told, as the step takes it; embeds the prompts.
    make_step: (stage, share of the views) -> step (state, prior_params, text, key) -> (state, metrics); pure.
    sheets: (workdir, state, (prior_params, text, key)) -> a context, within which there is a look for every
      `training.guidance_every` steps, or None.
    together: how many neighbouring views of a step are of as many things, and cannot be parted.
    scenes: of a run of many, whose state and text have a leading axis; else None.
    check: (workdir) -> None, where there are checkpoints in it: whether they were made from what this run is given
      beside its settings; raises ResumeError where not. By process 0 alone.
    keep: (workdir) -> None, once it is settled that the run goes on there: puts what it is given into the folder.
  """
  stages: Sequence[Stage]
  new_state: Callable[[Array], TrainState]
  begin: Callable[[Params, dict[str, Array], Array, TrainState | None], TrainState]
  text: Callable[[], dict[str, Array]]
  make_step: Callable[[Stage, Share], StepFn]
  sheets: Callable[[Path, TrainState, tuple], contextlib.AbstractContextManager[LookFn | None]]
  together: int = 1
  scenes: Scenes | None = None
  check: Callable[[Path], None] = lambda workdir: None
  keep: Callable[[Path], None] = lambda workdir: None


def text3d(config: ml_collections.FrozenConfigDict, prior: Prior) -> Job:
  """An object from a sentence; its scene renders as its stages say."""
  stages = stages_lib.make_stages(config)
  scene = stages[0].scene
  return Job(
      stages, lambda key: step_lib.new_state(scene, key),
      lambda params, text, key, source: step_lib.begin(scene, prior, params, text, key, source),
      lambda: conditions.embed_prompts(prior, config),
      lambda stage, share: step_lib.make_step(stage.scene, prior, share),
      lambda workdir, state, fixed: inspect_guidance.sheets(stages, prior, workdir, state, fixed),
      particles.count(config))


def image3d(config: ml_collections.FrozenConfigDict, prior: Prior, words: Prior | None, told: image3d_lib.Told) -> Job:
  """An object from a picture; `words` is a second prior that is told the prompt (`image3d.make_step`).

  Args:
    told: what is known of the picture, without `words`.
  """
  one = text3d(config, prior)

  def text() -> image3d_lib.Told:
    if words is None:
      return told
    return dict(told, words=conditions.embed_prompts(words, image3d_lib.words_config(config)))

  def make_step(stage: Stage, share: Share) -> StepFn:
    return image3d_lib.make_step(stage.scene, prior, words, share)

  return dataclasses.replace(one, text=text, make_step=make_step)


def many(config: ml_collections.FrozenConfigDict, prior: Prior, scenes: Scenes) -> Job:
  """An object from each of many sentences, at the same time."""
  one, count = text3d(config, prior), len(scenes.prompts)

  def text() -> dict[str, Array]:
    return scenes_lib.stacked([conditions.embed_prompts(prior, config, prompt) for prompt in scenes.prompts])

  def begin(params: Params, text: dict[str, Array], key: Array, source: TrainState | None) -> TrainState:
    return scenes_lib.repeated(one.begin(params, jax.tree.map(lambda leaf: leaf[0], text), key, source), count)

  def make_step(stage: Stage, share: Share) -> StepFn:
    return scenes_lib.over_scenes(one.make_step(stage, share), scenes_lib.at_a_time(config, count))

  return Job(one.stages, lambda key: scenes_lib.repeated(one.new_state(key), count), begin, text, make_step,
             lambda workdir, state, fixed: contextlib.nullcontext(), scenes=scenes,
             check=functools.partial(scenes_lib.check_same, config, scenes),
             keep=functools.partial(scenes_lib.keep, scenes))


def pictures(studio: image2d.Studio, prior: Prior) -> Job:
  """Pictures by a generator; one stage."""
  return Job(
      (Stage(0, studio),), lambda key: image2d.new_state(studio, key),
      lambda params, text, key, source: image2d.begin(studio, prior, params, text, key, source),
      lambda: image2d.embed_prompts(prior, studio.config, studio.generator.frames),
      lambda stage, share: image2d.make_step(studio, prior, share),
      lambda workdir, state, fixed: contextlib.nullcontext(),
      studio.config.generator.particles * studio.generator.frames)
