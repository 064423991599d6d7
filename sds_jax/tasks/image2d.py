"""Images from a prompt, by a parameterisation of the package or by a user's generator.

A generator of the user needs no class and no name:

    prior, prior_params = sds_jax.build_prior("shapeworld")
    draw = lambda theta, key: jax.nn.sigmoid(theta)[None]               # [F, H, W, 3]
    theta = image2d.optimise(draw, jnp.zeros((64, 64, 3)), prior, prior_params, "a red cube")
"""
from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sds_jax import schema, settings as settings_lib
from sds_jax.generators.catalogue import GeneratorError, check_images, make_generator
from sds_jax.generators import images as images_lib
from sds_jax.generators.images import ImageGenerator
from sds_jax.generators.parameterization import Parameterization
from sds_jax.io import files, images
from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior, Weights
from sds_jax.prng import seeded_key
from sds_jax.schema import ConfigError
from sds_jax.settings.generator import ImageGeneratorSettings
from sds_jax.settings.image2d import Image2D, prompts_of
from sds_jax.tasks import priors
from sds_jax.tasks.base import PromptTask
from sds_jax.training import conditions, workspace
from sds_jax.training.loop import RunResult
from sds_jax.training.parallel import Share
from sds_jax.training.program import Program, make_program
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState
from sds_jax.training.step import Term
from sds_jax.training.terms.distillation import Distillation
from sds_jax.training.terms.regularisers import Penalty
from sds_jax.types import Array, Params

LARGER_PRIOR = "configs/image2d.py:fourier,sd15"
"""The configuration with a larger prior, for errors."""


def make_images(settings: ImageGeneratorSettings, views: int, prompt: str,
                parameterization: Parameterization | None = None) -> ImageGenerator:
  """Builds the generator of the settings.

  Args:
    settings: name and sizes.
    views: number of images of a step.
    prompt: of the run; its parts are spread over the frames.
    parameterization: used in place of the one that the settings name.

  Raises:
    ConfigError: a generator of the user does not work, or the frames do not fit the views or the prompt.
  """
  if parameterization is None:
    try:
      parameterization = make_generator(settings.name, settings.size, generator_options(settings))
    except GeneratorError as error:
      raise ConfigError(f"config.generator.name={error}") from error
  # Checked again: the settings do not know the frames of a user's generator.
  frames = parameterization.frames
  if views % (settings.particles * frames) or len(prompts_of(prompt)) > frames:
    raise ConfigError(f"config.training.views={views} must be a multiple of config.generator.particles="
                      f"{settings.particles} times the {frames} frames of this generator, and config.prompt="
                      f"{prompt!r} have no more parts than frames")
  return ImageGenerator(parameterization, settings.particles, tuple(settings.viewpoint) or None)


def generator_options(settings: ImageGeneratorSettings) -> dict[str, Any]:
  """Returns the keywords of the generator that the settings name."""
  if not hasattr(settings, settings.name):
    return {}  # a generator of the user takes no keywords
  options = schema.to_dict(getattr(settings, settings.name))
  if "of" in options:
    options["settings"] = schema.to_dict(getattr(settings, options["of"]))
  return options


class Image2DTask(PromptTask):
  """A run of images.

  Attributes:
    settings: the validated tree.
    parameterization: used in place of the one that the settings name; None: the settings'.
  """

  def __init__(self, settings: Image2D, parameterization: Parameterization | None = None):
    """Keeps the settings; the generator is built at its first use."""
    self.settings, self.parameterization = settings, parameterization

  @property
  def run_name(self) -> str:
    """Prompt and generator as a name of a folder."""
    return f"{files.prompt_slug(self.settings.prompt)}-{files.prompt_slug(self.settings.generator.name)}"

  @property
  def headline(self) -> str:
    """Prompt, generator and seed."""
    return f"{self.settings.prompt!r} by {self.settings.generator.name} with seed {self.settings.seed}"

  @functools.cached_property
  def generator(self) -> ImageGenerator:
    """The generator of the settings; see `make_images` for errors."""
    s = self.settings
    return make_images(s.generator, s.training.views, s.prompt, self.parameterization)

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that the run may write."""
    del folder
    # The number of frames of a user's generator is not known here; its files are claimed as they are written.
    g = self.settings.generator
    return {**workspace.LAYOUT, **dict.fromkeys(images_lib.file_names(g.particles * g.frames))}

  @functools.cached_property
  def opened(self) -> tuple[Prior, Weights]:
    """The prior and its weights, unread; the prompts have been checked."""
    s = self.settings
    prior, weights = priors.open_prior(s.prior, s.distillation)
    named = {f"config.prompt={prompt!r}": prompt for prompt in prompts_of(s.prompt)}
    priors.check_prompts(prior, s.prior, s.distillation, s.negative_prompt, named, LARGER_PRIOR, objects=False)
    return prior, weights

  def program(self, prior: Prior) -> Program:
    """Returns the functions of the run, which has one stage."""
    s = self.settings
    # A prior without cameras takes no viewpoint.
    generator = self.generator if prior.camera_dim else dataclasses.replace(self.generator, viewpoint=None)
    penalty = generator.parameterization.penalty

    def terms(stage: Stage) -> list[Term]:
      distillation = Distillation(stage.generator, prior, s.distillation, s.loss.sds, s.training.views, s.seed)
      # With the weight of the distillation, so that their proportion stays.
      return [distillation] if penalty is None else [distillation, Penalty(penalty, s.loss.sds)]

    return make_program(s, (Stage(0, generator),), terms, prior, lambda: self.embed(prior))

  def embed(self, prior: Prior) -> conditions.Text:
    """Embeds the prompts of the run, one for each frame.

    The estimator's own texts are embedded, too.

    K prompts are spread evenly over the F frames, linear in between: with K = F frame i has prompt i.
    """
    s, frames = self.settings, self.generator.parameterization.frames

    # HIGHEST: otherwise an accelerator rounds the embedded prompts to 11 or 8 significant bits, even at weights of 1.
    def over_frames(embedded: Array) -> Array:
      count = embedded.shape[0]
      place = np.linspace(0.0, count - 1.0, frames) if frames > 1 else np.zeros(1)
      weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(count)[None])).astype(np.float32)
      return jnp.einsum("fk,k...->f...", jnp.asarray(weights), embedded, precision=jax.lax.Precision.HIGHEST)

    texts = conditions.texts(prior, s.distillation, s.negative_prompt, s.prompt, prompts_of)
    return {name: jax.tree.map(over_frames, embedded) if name in conditions.SPREAD else embedded
            for name, embedded in conditions.embed(prior, texts).items()}

  def preview(self, state: TrainState, folder: Path, step: int) -> None:
    """Writes all images to a single file in progress/."""
    images.write_png(images.tile(self.generator.show(state.shown)), folder / "progress" / f"{step:06d}.png")

  def finish(self, result: RunResult, folder: Path, timings: dict[str, float], started: float) -> None:
    """Writes all outputs after the last step."""
    self._write(result.state, folder, timings, started)

  def export(self, state: TrainState, folder: Path, started: float) -> None:
    """Writes all outputs of a restored state."""
    self._write(state, folder, files.read_json(folder / "timings.json"), started)

  def _write(self, state: TrainState, folder: Path, timings: dict[str, Any], started: float) -> None:
    before = time.perf_counter()
    exported = self.generator.export(state.shown, state.occupancy, folder)
    files.write_json(dict(timings, export_s=time.perf_counter() - before), folder / "timings.json")
    print(f"done in {time.perf_counter() - started:.0f} s:")
    for what, paths in exported.files.items():
      print(f"  {what}: {paths[0]}" + (f" to {paths[-1].name}" if len(paths) > 1 else ""))

  def check_views(self, folder: Path) -> None:
    """Raises ConfigError: images have no views."""
    raise ConfigError(f"--mode=render is for objects (config.job='text3d'), and {folder} holds a run of images "
                      "(config.job='image2d'): there are no views to render; --mode=export makes the images again")


def optimise(apply: Callable[[Params, Array], Array], params: Params, prior: Prior, prior_params: Params, prompt: str,
             *, config: ConfigDict | None = None) -> Params:
  """Distils a prompt into any generator, without files.

  Args:
    apply: (params, key) -> images [F, H, H, 3] float32 in [0, 1], differentiable in params; consumes the key.
    params: to begin with.
    prior: of `build_prior`.
    prior_params: of `build_prior`.
    prompt: one, or up to F with "|" between them.
    config: of `settings.defaults("image2d")`; its prior and its generator, except the viewpoint, have no effect. None:
      the defaults.

  Returns:
    The parameters after `training.steps` steps.

  Raises:
    ConfigError: a setting is not legal, apply returns no such images, F does not divide `training.views`, or prompts
      outnumber frames.
  """
  config = settings_lib.defaults("image2d") if config is None else config.copy_and_resolve_references()
  config.update_from_flattened_dict({
      # A name in the form of a user's function passes validation; nothing imports it, since `apply` is given.
      "prompt": prompt, "generator.name": "python:apply", "generator.particles": 1, "prior.name": prior.name,
      "prior.path": "", "prior.random_weights": False})
  image = jax.eval_shape(apply, params, jax.random.key(0))
  frames = image.shape[0] if getattr(image, "ndim", 0) == 4 else 1
  try:
    check_images("apply", image, frames)
  except GeneratorError as error:
    raise ConfigError(str(error)) from error
  settings = settings_lib.validate(config)
  program = Image2DTask(settings, Parameterization(lambda key: params, apply, frames=frames)).program(prior)
  fixed = (prior_params, program.embed(), seeded_key(settings.seed))
  # The images begin from `params`; the key draws at most the second network of an estimator.
  state = program.begin(prior_params, fixed[1], seeded_key(0), None)
  # Donated: otherwise two states would be in memory at once.
  step = jax.jit(program.make_step(program.stages[0], Share()), donate_argnums=0)
  for _ in range(settings.training.steps):
    state, _ = step(state, *fixed)
  # `ImageGenerator` gives all parameters a leading axis of particles, here one.
  return jax.tree.map(lambda leaf: leaf[0], state.shown)
