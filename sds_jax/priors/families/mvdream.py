"""MVDream (arXiv:2308.16512): latents of four views of an object at once, conditioned on a prompt and the cameras.

The network is Stable Diffusion 2.1's U-Net. Each view's camera enters as a class embedding, and the self-attention
covers the tokens of all four views of an object, which share t. The views are 90 degrees apart, with one elevation,
distance and field of view. Published folders are in diffusers' layout with code of their own, which is never run;
their U-Net has the names of latent diffusion, which `ldm_names` makes from ours. A U-Net of diffusers' class and names
is read, too. The configurations are from the original code (bytedance/MVDream) and from published folders.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from sds_jax.priors.assemble import (RandomNetworks, StoredNetworks, check_text, check_unet, make_prior,
                                     read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, Published, Weights
from sds_jax.priors.families.stable_diffusion import OPEN_CLIP_H, SD2_UNET, SD_SCHEDULER, SD_VAE
from sds_jax.priors.latent_size import chosen_size
from sds_jax.priors.loading import names
from sds_jax.priors.loading.checkpoint import COMPONENTS, Component, abstract_params
from sds_jax.priors.loading.files import read_json
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.ldm_names import unet_rule
from sds_jax.priors.loading.random_weights import random_text_encoder
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import CLIP_TOKENIZER, CLIP_TOKENIZER_FILES, open_clip_text
from sds_jax.priors.networks.multiview_unet import VIEWS, MultiViewUNetModel, is_of_diffusers
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.spaces import Space, latent_space
from sds_jax.types import Array, Camera

TextFn = Callable[[Sequence[str]], Mapping[str, Array]]
"""(prompts) -> {"text": [n, T, D]}."""

CAMERA_DIM = 16
"""Length of `camera_matrix`."""

MVDREAM_UNET: dict[str, Any] = SD2_UNET | dict(
  sample_size=32, class_embed_type="projection", projection_class_embeddings_input_dim=CAMERA_DIM)
"""The U-Net by diffusers' keys, without the number of views."""

_CONFIGS = dict(unet=MVDREAM_UNET, vae=SD_VAE | dict(sample_size=256), clip_text=OPEN_CLIP_H, scheduler=SD_SCHEDULER)


def camera_matrix(camera: Camera) -> Array:
  """Returns MVDream's camera features [..., CAMERA_DIM]: the rows of a 4x4 matrix from the camera to the world.

  The axes are Blender's, which are those of this package: z up, the camera's right, up and backward. The position has
  unit length, so neither the distance nor the field of view enters.
  """
  position = camera.position / jnp.linalg.norm(camera.position, axis=-1, keepdims=True)
  top = jnp.concatenate([camera.rotation, position[..., None]], axis=-1)
  bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]).reshape((1,) * (top.ndim - 1) + (4,)),
                            (*top.shape[:-2], 1, 4))
  return jnp.concatenate([top, bottom], axis=-2).reshape(*top.shape[:-2], CAMERA_DIM)


def stored_names(unet: UNet2DConditionModel) -> names.NameTable:
  """Returns the table of a U-Net whose parameters have the names of latent diffusion, `camera_embed` for the camera."""
  attending = frozenset(i for i, kind in enumerate(unet.up_block_types) if "CrossAttn" in kind)
  rule = unet_rule(unet.layers_per_block, attending)
  renamed = {name: rule(name).key for name in names.flax_paths(abstract_params(unet), names.UNET)}
  return names.NameTable(numbered=names.UNET.numbered, renamed=renamed)


_UNET = Component(MultiViewUNetModel, "diffusion_pytorch_model", names.UNET)
"""The U-Net of a folder; `stored_names` has the names of its parameters."""


def files(index: Config) -> Files:
  """Returns the files of an MVDreamPipeline folder."""
  del index
  return Files({"unet": _UNET, "text_encoder": COMPONENTS["clip_text"], "vae": COMPONENTS["vae"]},
               small=CLIP_TOKENIZER_FILES, tokenizers=CLIP_TOKENIZER)


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens an MVDreamPipeline folder; reads no weights."""
  del index
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet = networks.open("unet", unet_component(read_json(folder / "unet" / "config.json")))
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = chosen_size(folder, unet, vae, options.image_size, native=MVDREAM_UNET["sample_size"])
  space = latent_space(vae, size)
  check_unet(folder, unet, space, camera_dim=CAMERA_DIM)
  text = open_clip_text(folder, options.dtype, options.variant, additions=options.additions)
  check_text(folder, unet, text)
  return _prior(source, space, unet, scheduler, text, notes), networks.weights()


def unet_component(config: Config) -> Component:
  """Returns the component of a U-Net, with the names of the network that its config.json describes."""
  unet = MultiViewUNetModel.from_config(config)
  # The names of latent diffusion follow from the blocks, so the network is known before its files are opened.
  table = names.UNET if is_of_diffusers(config) else stored_names(unet)
  return Component(MultiViewUNetModel, _UNET.stem, table)


def _prior(source: Source, space: Space, unet: UNet2DConditionModel, scheduler: Config, text: TextFn,
           notes: Sequence[str]) -> Prior:
  return make_prior(source, space, unet, scheduler, text, notes=notes, camera_dim=CAMERA_DIM, views=unet.views,
                    camera_features=camera_matrix)


def open_random(source: Source, configs: Mapping[str, Config], options: Options) -> tuple[Prior, Weights]:
  """Opens a prior of published shapes with random weights and random embeddings."""
  networks = RandomNetworks(configs, options.dtype)
  unet = networks.open("unet", views=VIEWS)
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = chosen_size(None, unet, vae, options.image_size)
  prior = _prior(source, latent_space(vae, size), unet, configs["scheduler"], random_text_encoder(unet.text_dim), notes)
  return prior, networks.weights()


MVDREAM = Family(
  name="MVDream",
  layout="'MVDreamPipeline' (4 views, Stable Diffusion 2.1)",
  matches=lambda index: index.get("_class_name") == "MVDreamPipeline",
  files=files,
  open=open_folder,
  random=open_random,
  takes_additions=("unet", "text_encoder"),
  published={"mvdream": Published(("ashawkey/mvdream-sd2.1-diffusers",), _CONFIGS)},
  views=VIEWS)
