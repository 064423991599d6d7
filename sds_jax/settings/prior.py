"""Settings of the frozen diffusion models: `prior`, and of image-to-3D `words`."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from sds_jax.priors import controlnets, families, published
from sds_jax.priors.loading.file_lists import parse_embeddings, parse_loras
from sds_jax.schema import (AUTO, ConfigError, Legal, Scheduled, folder, number, one_of, scheduled, sentence, setting,
                            switch, whole)


DTYPES = ("float32", "bfloat16", "float16")
"""Legal values of `prior.dtype`; float16 is for GPUs before Ampere, such as T4 and V100, which lack bfloat16."""

_VARIANT = Legal(lambda v: re.fullmatch(r"[A-Za-z0-9_-]{0,100}", v) is not None,
                 "at most 100 letters, digits, '_' and '-'")
_PAIR = Legal(lambda v: len(v) == 2 and all(type(side) is int and 0 <= side <= 8192 for side in v),
              "two whole numbers from 0 to 8192", tuple)


SIZES = ("original_size", "crop", "target_size")
"""Settings of the sizes that the networks of SDXL are conditioned on (arXiv:2307.01952, section 2.2)."""

_PREDICTION = Legal(lambda v: v in ("", "epsilon", "v_prediction"),
                    "epsilon or v_prediction (empty: as the file tells)")
_OF_FILES = ("prediction_type", "ema", "config", "unet", "vae", "lora", "embeddings")


def _listed(parse: Callable[[Any], Any], words: str) -> Legal:
  """Allows what `parse` reads; the reason of its ValueError is part of the error."""
  def convert(value: Any) -> Any:
    try:
      return parse(value)
    except ValueError as error:
      raise ConfigError(f"{error}; it must be {words}") from error

  return Legal(lambda value: True, words, convert, loose=True)


def _loras() -> Legal:
  return _listed(parse_loras, "files FILE:SCALE or FILE, separated by commas or in a tuple")


def _embeddings() -> Legal:
  return _listed(parse_embeddings, "files FILE or TOKEN=FILE, separated by commas or in a tuple")


@dataclasses.dataclass(frozen=True)
class PriorSettings:
  """The diffusion model that distillation learns from: its name or folder, precision and memory."""
  name: str = setting("shapeworld", sentence(), "a shipped or published prior, a hub id 'owner/name', or a folder")
  path: str = setting("", folder(" or single file (empty: `name` counts)"),
                      "a folder in diffusers format or a single-file checkpoint, in place of `name`")
  prediction_type: str = setting("", _PREDICTION, "what a single file of SD 2.x predicts, which does not tell")
  ema: bool = setting(False, switch(), "take the averaged weights of a single file (`model_ema.*`)")
  config: str = setting("", folder(" (empty: none)"), "a diffusers folder whose small files describe a single file")
  unet: str = setting("", folder(" or file (empty: the prior's own)"), "another U-Net: a file, a folder or a hub id")
  vae: str = setting("", folder(" or file (empty: the prior's own)"),
                     "another VAE: a file, a folder, a hub id, taesd or taesdxl")
  dtype: str = setting("float32", one_of(DTYPES), "precision of the prior's weights and activations")
  variant: str = setting("", _VARIANT, "variant of the weight files, such as fp16 or fp16_ema; empty: none first")
  image_size: int = setting(0, whole(0, 8192), "pixels of the images of a prior of latents; 0: as its files say")
  lora: tuple = setting((), _loras(), "LoRA files of `name`'s base model, merged in this order")
  embeddings: tuple = setting((), _embeddings(), "textual inversions, whose tokens prompts may have")
  random_weights: bool = setting(False, switch(), "random weights in the shapes of `name`; reads no file; for timing")
  original_size: tuple[int, int] = setting(
    (0, 0), _PAIR, "SDXL: height and width of the training photo before resizing, pixels; 0: image_size")
  crop: tuple[int, int] = setting((0, 0), _PAIR, "SDXL: rows and columns cut off the photo at the top and at the left")
  target_size: tuple[int, int] = setting((0, 0), _PAIR, "SDXL: height and width of the cropped photo; 0: image_size")
  vae_remat: bool = setting(False, switch(), "recompute the VAE encoder in its gradient: less memory, more time")
  allow_unknown_words: bool = setting(False, switch(), "accept prompts with words that a small prior never saw")
  controlnet: str = setting("", sentence(), "ControlNet: depth, normal, a hub id, a folder or a file (empty: none)")
  controlnet_kind: str = setting(AUTO, one_of((AUTO, *controlnets.KINDS)), "image of a view for it; auto: by its name")
  controlnet_scale: float = setting(1.0, number(0.0, 100.0), "factor of what the ControlNet adds to the U-Net")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    yield from self._controlnet(path)
    if self.random_weights and (self.path or self.name not in published.PRIORS):
      yield (f"{path}.random_weights={self.random_weights!r} needs the name of a published prior, not {path}."
             f"{'path' if self.path else 'name'}={self.path or self.name!r}: set {path}.name to one of "
             f"{', '.join(published.PRIORS)}, or random_weights to False")
    for name in SIZES:
      if 0 < sum(side > 0 for side in getattr(self, name)) < 2 and name != "crop":
        yield f"{path}.{name}={getattr(self, name)!r} sets one side only: set both, or (0, 0)"
    for name in (*_OF_FILES, "variant") if self.random_weights else ():
      if value := getattr(self, name):
        yield (f"{path}.{name}={value!r} has no effect on random weights: set it to {type(value)()!r}, or "
               "random_weights to False")

  def file_options(self) -> dict[str, Any]:
    """Returns the fields of `priors.base.Options` that say how files are read and which networks are replaced."""
    return {name: getattr(self, name) for name in (*_OF_FILES, "variant", "image_size")}

  @property
  def control_kind(self) -> str:
    """The kind of the images that the ControlNet reads, a name of `controlnets.KINDS`; "" without a ControlNet."""
    if not self.controlnet:
      return ""
    return controlnets.kind_of_name(self.controlnet) if self.controlnet_kind == AUTO else self.controlnet_kind

  def _controlnet(self, path: str) -> Iterator[str]:
    named = f"{path}.controlnet={self.controlnet!r}"
    if not self.controlnet:
      for name, default in (("controlnet_kind", AUTO), ("controlnet_scale", 1.0)):
        if getattr(self, name) != default:
          yield f"{path}.{name}={getattr(self, name)!r} has no effect because {named}: leave it at {default!r}"
      return
    if not self.control_kind:
      yield (f"{named} does not say by its name what images it reads: set {path}.controlnet_kind to one of "
             f"{', '.join(controlnets.KINDS)}")
    if not self.path and families.takes_controlnet(self.name) is False:
      yield (f"{named} is for Stable Diffusion 1.x, not for {path}.name={self.name!r}: set {path}.name to sd15, or "
             f"{path}.controlnet to ''")


@dataclasses.dataclass(frozen=True)
class WordsSettings:
  """The second prior, conditioned on `prompt` (Magic123, arXiv:2306.17843); used where `loss.words` is not 0."""
  prior: str = setting("shapeworld", sentence(), "a text-conditioned prior: a name, a hub id 'owner/name', or a folder")
  path: str = setting("", folder(" or single file (empty: `prior` counts)"),
                      "a folder in diffusers format or a single-file checkpoint, in place of `prior`")
  prediction_type: str = setting("", _PREDICTION, "what a single file of SD 2.x predicts, which does not tell")
  lora: tuple = setting((), _loras(), "LoRA files of `prior`'s base model, merged in this order")
  embeddings: tuple = setting((), _embeddings(), "textual inversions, whose tokens the prompt may have")
  guidance_scale: Scheduled = setting(3.0, scheduled(-1000.0, 1000.0), "s of eps_u + s (eps_c - eps_u)")


def prior_mismatch(task: str, takes_images: bool) -> str:
  """Returns why a prior does not suit the task; "" where the prior suits.

  The text follows the prior's name in an error.

  Args:
    task: value of the setting `job`.
    takes_images: whether the prior is conditioned on an image instead of a text.
  """
  if takes_images == (task == "image3d"):
    return ""
  if takes_images:
    return ("is conditioned on an image, not on text: use configs/image.py instead, or a prior that is conditioned on "
            "text")
  return ("is conditioned on text, not on an image: use configs/image.py:shapeworld-views, or another prior that is "
          "conditioned on an image, instead")


def controlnet_mismatch(task: str) -> str:
  """Returns why a task has no use for a ControlNet, to follow the setting in an error; "" where the task has one.

  Args:
    task: value of the setting `job`.
  """
  if task == "image3d":
    return ("is for priors that are conditioned on text, not on an image: leave it empty, or use configs/text.py:sd15 "
            "instead")
  if task == "image2d":
    return "reads depth or normals of an object, and images have none: leave it empty, or use configs/text.py:sd15"
  return ""
