"""Opens the priors of a run, and checks all files and prompts before any weights are read."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from sds_jax.diffusion.estimators import find
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.base import PromptError, SizeConditions
from sds_jax.priors.controlnets import ControlNetChoice
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.prior import Prior, Weights
from sds_jax.schema import ConfigError
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.settings.prior import SIZES, PriorSettings, prior_mismatch
from sds_jax.training import conditions
from sds_jax.training.control_images import IMAGES
from sds_jax.training.layout import DeviceLayout
from sds_jax.types import Params

_NAME_FIELDS = {"prior": "name", "words": "prior"}
"""Group of settings -> its field that names a prior."""


def open_prior(prior: PriorSettings, distillation: DistillationSettings, task: str = "text3d",
               group: str = "prior", views: int = 0) -> tuple[Prior, Weights]:
  """Opens a prior and its weights, unread.

  Args:
    prior: name or path, dtype.
    distillation: `latent_until` needs a prior of latents.
    task: value of the setting `job`; image-to-3D needs a prior that is conditioned on an image.
    group: the settings group that names the prior, for errors: "prior", or "words" for a second prior.
    views: number of views around an object that the run draws together (`camera.group`); 0: the task has no cameras.

  Raises:
    ConfigError: the prior does not suit the task, or looks at another number of views together.
    CheckpointError: files are missing or damaged.
  """
  sizes = {name: tuple(getattr(prior, name)) for name in SIZES}
  named = f"config.{group}.{'path' if prior.path else _NAME_FIELDS[group]}={prior.path or prior.name!r}"

  def check(opened: Prior) -> None:
    if problem := prior_mismatch(task, bool(opened.photo)):
      raise ConfigError(f"{named} {problem}")
    if opened.views not in (1, views):
      remedy = (f"set config.camera.group={opened.views}, and config.training.views to a multiple of it" if views else
                "images have no views; use configs/text.py, or another prior")
      raise ConfigError(f"{named} looks at {opened.views} views of an object together: {remedy}")
    # Three channels of normals and one of opacity.
    if distillation.latent_until > 0.0 and opened.x_shape[-1] != 4:
      raise ConfigError(f"config.distillation.latent_until={distillation.latent_until} makes latents of four channels, "
                        f"but {named} diffuses {opened.x_shape[-1]}; set it to 0.0, or use a prior of latents")
    for name, size in sizes.items():
      if any(size) and opened.time_ids is None:
        raise ConfigError(f"config.prior.{name}={size} has no effect on {named}, which is not conditioned on sizes: "
                          "set it to (0, 0), or use sdxl")

  try:
    return prior_lib.open_prior(prior.path or prior.name, prior.dtype, prior.allow_unknown_words, prior.vae_remat,
                                prior.random_weights, check, sizes=SizeConditions(**sizes),
                                controlnet=controlnet_choice(prior), **prior.file_options())
  # Both are ValueErrors whose messages need no prefix.
  except (CheckpointError, ConfigError):
    raise
  except ValueError as error:  # networks that are not supported
    raise ConfigError(f"{named}: {error}") from error
  except OSError as error:  # a device or a folder that may not be read
    raise ConfigError(f"{named} cannot be read: {error.strerror or error}") from error


def controlnet_choice(prior: PriorSettings) -> ControlNetChoice | None:
  """Returns the ControlNet that the settings name; None without one."""
  if not prior.controlnet:
    return None
  return ControlNetChoice(prior.controlnet, prior.control_kind, prior.controlnet_scale)


def check_prompts(prior: Prior, settings: PriorSettings, distillation: DistillationSettings, negative_prompt: str,
                  prompts: Mapping[str, str], larger: str, group: str = "prior", objects: bool = True) -> None:
  """Raises ConfigError if a prompt has words outside the prior's vocabulary.

  Args:
    prior: the prior.
    settings: `allow_unknown_words` switches the check off.
    distillation: the estimator's own texts are checked, too.
    negative_prompt: of the settings.
    prompts: {the setting with its value, as errors name it: prompt}.
    larger: the option of the command line that selects a larger prior, for errors.
    group: the settings group that names the prior, for errors.
    objects: whether view words are added to the prompts.
  """
  # Large priors have no vocabulary: any text is a prompt.
  if prior.vocabulary is None or settings.allow_unknown_words:
    return
  for named, prompt in prompts.items():
    _check_prompt(prior, distillation, prompt, named, larger, group, objects)
  for setting, text in conditions.user_texts(distillation, negative_prompt).items():
    try:
      prior_lib.check_words([text], prior.vocabulary)
    except ValueError as error:
      raise ConfigError(f"config.{setting}={text!r} is beyond this prior: {error}") from error


def load_weights(weights: Weights, layout: DeviceLayout | None = None) -> Params:
  """Reads a prior's parameters onto the devices of the layout.

  Without a layout the parameters go onto the first device.
  """
  return weights.load(layout.put_prior if layout else jax.device_put)


def describe_choices(prior: Prior, distillation: DistillationSettings, negative_prompt: str) -> Sequence[str]:
  """Returns lines for the log: the prior, and the values that settings left open."""
  d = distillation
  guided = f"guidance_scale={d.guidance_scale} ({d.guidance_convention}), " if find(d.estimator).guided else ""
  control = f", with a ControlNet that reads the {IMAGES[prior.control]} of the views" if prior.control else ""
  lines = [f"prior: {prior.source}{control}",
           f"estimator: {d.estimator}, {guided}weighting={d.weighting}, t from {d.t_min} to {d.t_max}"]
  lines += prior.notes
  note = conditions.substitutions(prior, d, negative_prompt)
  return [*lines, note] if note else lines


def _check_prompt(prior: Prior, distillation: DistillationSettings, prompt: str, named: str, larger: str, group: str,
                  objects: bool) -> None:
  given = larger if larger.startswith("--") else f"--config={larger}"
  remedy = (f"It is a small demonstration. For anything else take a real model, by {given} or, for a folder in "
            f"diffusers' format, --config.{group}.path=FOLDER; or go on regardless with "
            "--config.prior.allow_unknown_words=True")
  try:
    prior.check_prompt(prompt, view_words=objects and distillation.view_words != "none")
  except PromptError as error:
    if error.view_words:
      remedy = "Set --config.distillation.view_words=none"
    raise ConfigError(f"{named} is beyond this prior: {str(error).rstrip('.')}. {remedy}") from error
