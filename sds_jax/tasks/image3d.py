"""Image to 3D: an object from a photo, by a prior conditioned on the photo and a relative pose.

A second prior may be conditioned on a prompt (Magic123, arXiv:2306.17843).
"""
from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import hosts
from sds_jax.io import files, images, photos
from sds_jax.priors import published
from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior, Weights
from sds_jax.schema import AUTO, ConfigError
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.settings.image3d import Image3D
from sds_jax.settings.prior import PriorSettings
from sds_jax.tasks import objects, photo as photo_lib, priors
from sds_jax.tasks.object_task import ObjectTask
from sds_jax.tasks.photo import InputPhoto
from sds_jax.tasks.task import OpenRun
from sds_jax.training import conditions
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.program import Program, make_program
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState
from sds_jax.training.step import Term
from sds_jax.training.terms.distillation import Distillation
from sds_jax.training.terms.reference import LOSSES, PhotoData, Reference, photo_camera
from sds_jax.types import Params

SECOND = "words"
"""Name of the second prior's group of settings, and of its part in parameters and conditions."""


class Image3DTask(ObjectTask):
  """A run of image-to-3D.

  The photo's light lies in the object's colours, so outputs have no light of their own, and no render is shaded.
  """
  ambient = 1.0
  settings: Image3D

  @property
  def always_normals(self) -> bool:
    """Whether `loss.orientation` reads the normals of the unshaded renders."""
    return self.settings.loss.orientation != 0.0

  @property
  def run_name(self) -> str:
    """The photo's name as a name of a folder."""
    return files.prompt_slug(Path(self.settings.image).stem)

  @property
  def headline(self) -> str:
    """The photo and the seed."""
    return f"{self.settings.image} with seed {self.settings.seed}"

  @property
  def title(self) -> str:
    """The photo's name."""
    return Path(self.settings.image).name

  def read_images(self) -> dict[str, str]:
    """Returns the optional images of a view that losses read: {image: loss}.

    Losses of weight 0 read nothing.
    """
    weights = {name: getattr(self.settings.loss, name) for name in ("normals", "smoothness", "depth")}
    return {name if name == "depth" else "normals": f"config.loss.{name}={weight!r}"
            for name, weight in weights.items() if weight != 0.0}

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that the run may write.

    The names are those of an object, and those of the photo and its maps.
    """
    kept = photo_lib.copies(self.settings.image, self.settings.picture).values()
    # Layouts hold names in lower case, for file systems that do not tell the cases apart.
    return {**super().outputs(folder), **dict.fromkeys(name.casefold() for name in kept if name),
            **dict.fromkeys(("reference.png", photo_lib.INPUT, photo_lib.ABOUT))}

  def user_files(self, folder: Path) -> dict[str, str]:
    """Returns the photo and its maps.

    Files that are the run's own copies of themselves are left out.
    """
    return photo_lib.files_to_keep(self.settings.image, self.settings.picture, folder)

  def read_inputs(self) -> InputPhoto:
    """Reads the photo and its maps; see `photo.read_input` for errors."""
    return photo_lib.read_input(self.settings.image, self.settings.picture, self.settings.render)

  def open(self, inputs: InputPhoto | None) -> OpenRun:
    """Loads the priors, encodes the photo, and makes the program.

    Raises:
      ConfigError: a prior does not suit the task, or cannot estimate the elevation.
      CheckpointError: files of a prior are missing or damaged.
    """
    s = self.settings
    # Only process 0 has read the photo; the shapes follow from the settings.
    arrays = hosts.broadcast_result(photo_lib.array_shapes(s.picture, s.render), lambda: inputs.arrays)
    layout = self.make_layout()
    prior, second, params = self.load_priors(layout)
    print("\n".join(priors.describe_choices(prior, s.distillation, s.negative_prompt)))
    data = hosts.broadcast(hosts.run_on_all(lambda: photo_lib.encode_photo(s.picture, prior, arrays)))
    program = dataclasses.replace(
        self.program(prior, second, data),
        check_inputs=functools.partial(photo_lib.check_same_photo, s.image, s.picture),
        # Called in process 0 alone: `inputs` is None in the others.
        keep_inputs=lambda folder: photo_lib.keep_photo(s.image, s.picture, inputs.photo, data, folder))
    return OpenRun(program, prior, params, layout)

  def load_priors(self, layout: DeviceLayout | None = None) -> tuple[Prior, Prior | None, Params]:
    """Opens the priors and reads their weights.

    A run has a prior of photos, and perhaps a prior of prompts.

    Everything is checked before any weights are read.

    Returns:
      (prior, second prior or None, parameters of the first with the second's under SECOND).

    Raises:
      ConfigError: a prior does not suit the task, cannot estimate the elevation, or was trained with another camera.
      CheckpointError: files are missing or damaged.
    """
    (prior, weights), (second, second_weights) = hosts.run_on_all(lambda: (self.opened, self.opened_second))
    params = hosts.run_on_all(lambda: priors.load_weights(weights, layout))
    if second:
      params[SECOND] = hosts.run_on_all(lambda: priors.load_weights(second_weights, layout))
    return prior, second, params

  @functools.cached_property
  def opened(self) -> tuple[Prior, Weights]:
    """The prior of photos and its weights, unread."""
    s = self.settings
    opened = priors.open_prior(s.prior, s.distillation, s.job, views=s.camera.group)
    self._check_camera(opened[0])
    return opened

  @functools.cached_property
  def opened_second(self) -> tuple[Prior, Weights] | tuple[None, None]:
    """The prior of prompts and its weights, unread.

    For a run without one, (None, None).
    """
    return self._open_second() if self.settings.loss.words != 0.0 else (None, None)

  def check(self) -> None:
    """Opens the priors, and checks the camera and the prompt.

    No weights are read.
    """
    super().check()
    _ = self.opened_second

  def _open_second(self) -> tuple[Prior, Weights]:
    s, distillation = self.settings, self.second_distillation
    opened, weights = priors.open_prior(self.second_prior, distillation, group=SECOND, views=s.camera.group)
    named = {f"config.prompt={s.prompt!r}": s.prompt}
    # `prior.allow_unknown_words` counts for both priors.
    priors.check_prompts(opened, s.prior, distillation, s.negative_prompt, named, "--config.words.prior=sd15", SECOND)
    return opened, weights

  @property
  def second_prior(self) -> PriorSettings:
    """The settings by which the second prior is opened."""
    words, first = self.settings.words, self.settings.prior
    # A shipped prior as the second one has weights of its own and is read.
    random_weights = first.random_weights and not words.path and words.prior in published.PRIORS
    # Choices among the first prior's files mean nothing to the second.
    return dataclasses.replace(first, name=words.prior, path=words.path, prediction_type=words.prediction_type,
                               random_weights=random_weights, variant="", image_size=0, ema=False, config="", unet="",
                               vae="", lora=words.lora, embeddings=words.embeddings)

  @property
  def second_distillation(self) -> DistillationSettings:
    """The second prior's distillation: SDS with a guidance scale of its own.

    The range of t is that of the first prior.
    """
    return dataclasses.replace(
        self.settings.distillation, estimator="sds", guidance_convention="diffusers", weighting="sigma2",
        guidance_scale=self.settings.words.guidance_scale, view_words="nearest")

  def _check_camera(self, prior: Prior) -> None:
    s = self.settings
    if s.picture.elevation_deg == AUTO and not prior.photo.estimates_elevation:
      raise ConfigError(f"config.picture.elevation_deg='auto', but the prior {prior.name!r} cannot estimate the "
                        "camera's elevation: give the elevation, such as --config.picture.elevation_deg=10")
    if prior.photo.camera:
      for name, only in zip(("distance", "fov_deg"), prior.photo.camera):
        value = getattr(s.camera, name)
        if not math.isclose(value[0], only, rel_tol=1e-3):
          raise ConfigError(f"config.camera.{name}={value!r}, but the prior {prior.name!r} was trained on views from "
                            f"one camera only, and would see an object of another size: leave it at {(only, only)}")

  def program(self, prior: Prior, second: Prior | None, data: PhotoData) -> Program:
    """Returns the functions of the run.

    Args:
      prior: conditioned on the photo.
      second: conditioned on the prompt, or None.
      data: of `photo.encode_photo`.
    """
    return make_program(self.settings, self.stages, lambda stage: self.photo_terms(prior, second, stage), prior,
                        lambda: self.embed(second, data), self.sheets(prior))

  def embed(self, second: Prior | None, data: PhotoData, prompt: str | None = None) -> dict[str, Any]:
    """Returns the conditions of a run: the photo's data.

    For a second prior the embedded prompt is added under SECOND.
    """
    if second is None:
      return data
    s = self.settings
    return {**data, SECOND: conditions.embed_prompts(second, self.second_distillation, s.negative_prompt,
                                                     s.prompt if prompt is None else prompt)}

  def photo_terms(self, prior: Prior, second: Prior | None, stage: Stage) -> list[Term]:
    """Returns the summands of the loss.

    The summands are the distillation from one or two priors, the regularisers, and the losses of the photo's view.
    """
    s, terms = self.settings, [self.distillation_term(prior, stage)]
    if second:
      # A stream of its own, so that the noise of the two priors is independent.
      terms.append(Distillation(stage.generator, second, self.second_distillation, s.loss.words, s.training.views,
                                s.seed, part=SECOND, stream=1, prefix="words_"))
    # Losses of weight 0 are left out, because some of them need maps or normals.
    weights = tuple((name, getattr(s.loss, name)) for name in LOSSES if getattr(s.loss, name) != 0.0)
    reference = Reference(stage.generator, weights, s.camera.distance[0], math.radians(s.camera.fov_deg[0]))
    return [*terms, *objects.regularisers(s.loss), reference]

  def write(self, state: TrainState, folder: Path, timings: dict[str, float]) -> None:
    """Writes all outputs.

    reference.png shows the photo beside the object from the same viewpoint.
    """
    photo, about = photo_lib.stored_photo(folder)
    viewpoint = dict(azimuth=jnp.float32(about["azimuth"]), elevation=jnp.float32(about["elevation"]))
    spans = self.settings.camera
    camera = photo_camera(viewpoint, spans.distance[0], math.radians(spans.fov_deg[0]))
    # Bare colours, because the light of the photo is part of them.
    out = self.view.view(state, jax.tree.map(lambda leaf: leaf[0], camera), 1.0)
    size = out.rgb.shape[0]
    mask = np.repeat(photos.resize_square(photo.opacity[..., None], size), 3, -1)
    rows = [[photos.resize_square(photo.rgb, size), mask], [out.rgb, np.repeat(out.opacity[..., None], 3, -1)]]
    comparison = images.write_png(images.tile_rows(rows, ["photo", "object"], titles=("", "colour", "opacity")),
                                  folder / "reference.png")
    self.write_all(state, folder, timings, comparison)
