"""ShapeWorld's priors: folded pixels, conditioned on a prompt by CLIP or on a photo and a pose.

Their model_index.json has the key `pixel_unshuffle`; the key `image_encoder` marks those that take a photo. Its keys:

  image_size       height and width of the images
  pixel_unshuffle  block r of `spaces.space_to_depth`, which folds the pixels
  camera_dim       length of the camera features that the U-Net takes as class labels; 0: no camera
  ray_dim          channels of `cameras.ray_features` behind those of the image at the U-Net's input; 0: none
  views            number of views of an object that the U-Net looks at together; absent: 1
  vocabulary       the words of the training captions; absent: any word
  captions         the grammar of the training captions (`captions.Grammar`); absent: any order of the words
  pose             of a prior with a photo: one of `photo.POSES`
  patch_tokens     of a prior with a photo: whether the U-Net attends to the tokens of the photo's patches
"""
from __future__ import annotations

import math
from typing import Any

from sds_jax.priors.assemble import (StoredNetworks, check_facts, check_text, check_unet, check_words, make_prior,
                                     positive_integer, read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, PromptError, Weights, accept_any_prompt
from sds_jax.priors.captions import Grammar
from sds_jax.priors.loading import clip_pixels
from sds_jax.priors.loading.checkpoint import COMPONENTS
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import CLIP_TOKENIZER, CLIP_TOKENIZER_FILES, open_clip_text
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.photo import FEATURE_EXTRACTOR, open_photo, pose_convention
from sds_jax.priors.spaces import Space, pixel_space
from sds_jax.views import prompts
from sds_jax.views.poses import DISTANCE, FOV_Y

LAYOUT = "folders of ours with the key pixel_unshuffle"


def files(index: Config) -> Files:
  """Returns the files of a prior with a text encoder."""
  del index
  return Files({"unet": COMPONENTS["unet"], "text_encoder": COMPONENTS["clip_text"]}, small=CLIP_TOKENIZER_FILES,
               tokenizers=CLIP_TOKENIZER)


def view_files(index: Config) -> Files:
  """Returns the files of a prior with an image encoder."""
  del index
  return Files({name: COMPONENTS[name] for name in ("unet", "image_encoder", "cc_projection")},
               {"elevation_head": COMPONENTS["elevation_head"]}, FEATURE_EXTRACTOR)


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens a prior that is conditioned on a prompt; reads no weights."""
  networks = StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet, space, cameras = _open_unet(source, index, networks, images=1, views=index.get("views", 1))
  text = open_clip_text(source.folder, options.dtype, options.variant, additions=options.additions)
  check_text(source.folder, unet, text)
  known = {} if options.any_words else _language(index)
  return make_prior(source, space, unet, scheduler, text, views=unet.views, **cameras, **known), networks.weights()


def open_view_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens a prior that is conditioned on a photo and a pose; reads no weights."""
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet, space, cameras = _open_unet(source, index, networks, images=2)
  projection = networks.open("cc_projection")
  photo = open_photo(folder, projection, "cc_projection", pose_convention(index, folder, "distance"), space,
                     options.dtype, clip_pixels.antialiased, patch_tokens=bool(index.get("patch_tokens", False)),
                     camera_dim=cameras["camera_dim"], camera=(DISTANCE, math.degrees(FOV_Y)),
                     variant=options.variant)
  check_facts(folder, ("the width that cc_projection gives", projection.out_features, unet.text_dim))
  return make_prior(source, space, unet, scheduler, photo=photo, **cameras), networks.weights()


def _open_unet(source: Source, index: Config, networks: StoredNetworks, images: int,
               views: int = 1) -> tuple[UNet2DConditionModel, Space, dict[str, int]]:
  """Returns the U-Net, the space of folded pixels, and {camera_dim, ray_dim}, after checking that they fit."""
  unet, path = networks.open("unet", views=views), source.folder / "model_index.json"
  size, block = (positive_integer(path, key, index.get(key)) for key in ("image_size", "pixel_unshuffle"))
  # The pixels of an image are folded into whole blocks.
  check_facts(source.folder, ("image_size modulo pixel_unshuffle", size % block, 0))
  space, cameras = pixel_space(size, block), {key: index.get(key, 0) for key in ("camera_dim", "ray_dim")}
  check_unet(source.folder, unet, space, images, **cameras)
  return unet, space, cameras


def _language(index: Config) -> dict[str, Any]:
  """Returns the vocabulary and the check of prompts, as `make_prior` takes them."""
  if not index.get("vocabulary"):
    return dict(vocabulary=None, check_prompt=accept_any_prompt)
  vocabulary = frozenset(index["vocabulary"])
  if "captions" in index:
    return dict(vocabulary=vocabulary, check_prompt=Grammar.from_config(index["captions"]).check_prompt)

  def check_prompt(prompt: str, view_words: bool = False) -> None:
    try:
      check_words([prompt], vocabulary)
    except ValueError as error:
      raise PromptError(str(error)) from error
    try:
      # Apart from the prompt, so that the error can blame the view words and not the prompt.
      check_words(prompts.view_prompts(prompt) if view_words else [], vocabulary)
    except ValueError as error:
      raise PromptError(str(error), view_words=True) from error

  return dict(vocabulary=vocabulary, check_prompt=check_prompt)


SHAPEWORLD = Family(
  name="ShapeWorld",
  layout=LAYOUT,
  matches=lambda index: "pixel_unshuffle" in index and "image_encoder" not in index,
  files=files,
  open=open_folder,
  shipped={"shapeworld": "shapeworld/prior"},
  takes_additions=("unet", "text_encoder"),
  small=True)

SHAPEWORLD_VIEWS = Family(
  name="ShapeWorld views",
  layout=LAYOUT,
  matches=lambda index: "pixel_unshuffle" in index and "image_encoder" in index,
  files=view_files,
  open=open_view_folder,
  shipped={"shapeworld-views": "shapeworld/view_prior"},
  takes_photo=True,
  takes_additions=("unet",),
  small=True)
