"""Stable Diffusion XL (arXiv:2307.01952): latents, conditioned on a prompt by two CLIPs, and on sizes.

Its base, its turbo (arXiv:2311.17042) and their fine-tunes have the same networks. The configurations were read in a
public mirror of the base; turbo differs in the size of its images and in samplers' keys of its scheduler.

The autoencoder's activations leave the range of float16, not that of bfloat16.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sds_jax.priors.assemble import (RandomNetworks, StoredNetworks, check_text, check_unet, make_prior,
                                     read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, Published, Weights
from sds_jax.priors.families.stable_diffusion import CLIP_L, SD_SCHEDULER, SD_VAE
from sds_jax.priors.latent_size import chosen_size
from sds_jax.priors.loading.checkpoint import COMPONENTS
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.random_weights import random_text_encoder
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import CLIP_TOKENIZER, CLIP_TOKENIZER_FILES, open_clip_pair
from sds_jax.priors.networks.config_check import shown
from sds_jax.priors.networks.vae import AutoencoderKL
from sds_jax.priors.spaces import latent_space

SDXL_UNET: dict[str, Any] = dict(
  sample_size=128, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280], layers_per_block=2,
  down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], cross_attention_dim=2048,
  up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], attention_head_dim=[5, 10, 20],
  transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, addition_embed_type="text_time",
  addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
SDXL_VAE: dict[str, Any] = SD_VAE | dict(sample_size=1024, scaling_factor=0.13025)
OPEN_CLIP_BIG_G: dict[str, Any] = CLIP_L | dict(
  hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
  projection_dim=1280, eos_token_id=2)
"""The second text encoder; its first one is CLIP_L."""

_SDXL = dict(unet=SDXL_UNET, vae=SDXL_VAE, clip_text=CLIP_L, clip_text_2=OPEN_CLIP_BIG_G, scheduler=SD_SCHEDULER)
_TURBO = _SDXL | dict(unet=SDXL_UNET | dict(sample_size=64))

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
"""Classes of the pipelines of these networks; the second has the base's weights or those of the refiner."""


def files(index: Config) -> Files:
  """Returns the files of a folder of the base's networks.

  Raises:
    CheckpointError: the folder is of a refiner.
  """
  _refuse_refiner(index)
  encoders = {"text_encoder": COMPONENTS["clip_text"], "text_encoder_2": COMPONENTS["clip_text_2"]}
  second = {name.replace("tokenizer/", "tokenizer_2/") for name in CLIP_TOKENIZER_FILES}
  return Files({"unet": COMPONENTS["unet"], **encoders, "vae": COMPONENTS["vae"]},
               small=CLIP_TOKENIZER_FILES | second, tokenizers=CLIP_TOKENIZER,
               tokenizer_folders=("tokenizer", "tokenizer_2"))


def _refuse_refiner(index: Config) -> None:
  """Raises CheckpointError for a refiner, which has the second text encoder alone and takes an aesthetic score."""
  if index.get("text_encoder", True) in (None, [None, None]) or index.get("requires_aesthetics_score"):
    raise CheckpointError("model_index.json is that of Stable Diffusion XL's refiner, which is not supported: it "
                          "denoises the last fifth of the times only; name the base, sdxl, instead")


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens a StableDiffusionXLPipeline folder; reads no weights.

  Raises:
    CheckpointError: a file is missing or damaged, or parts do not fit.
  """
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet = networks.open("unet")
  vae = _open_vae(networks, options)
  size, notes = chosen_size(folder, unet, vae, options.image_size, SDXL_UNET["sample_size"])
  space = latent_space(vae, size)
  check_unet(folder, unet, space, pooled=True)
  zeros = index.get("force_zeros_for_empty_prompt", True)
  if type(zeros) is not bool:
    raise CheckpointError(f"{folder / 'model_index.json'}: force_zeros_for_empty_prompt={shown(zeros)} is not "
                          "supported; supported: true or false")
  text = open_clip_pair(folder, options.dtype, zeros, options.variant, options.additions)
  check_text(folder, unet, text)
  prior = make_prior(source, space, unet, scheduler, text, notes=(*notes, *_vae_notes(vae, options)),
                     time_ids=options.sizes.time_ids(space.image_size))
  return prior, networks.weights()


def open_random(source: Source, configs: Mapping[str, Config], options: Options) -> tuple[Prior, Weights]:
  """Opens a prior of published shapes with random weights and random embeddings."""
  networks = RandomNetworks(configs, options.dtype)
  unet = networks.open("unet")
  vae = _open_vae(networks, options)
  size, notes = chosen_size(None, unet, vae, options.image_size)
  space = latent_space(vae, size)
  prior = make_prior(source, space, unet, configs["scheduler"], random_text_encoder(unet.text_dim, unet.pooled_dim),
                     notes=(*notes, *_vae_notes(vae, options)), time_ids=options.sizes.time_ids(space.image_size))
  return prior, networks.weights()


def _open_vae(networks: StoredNetworks | RandomNetworks, options: Options) -> AutoencoderKL:
  """Returns the autoencoder; in float16 its activations are float32, unless its config says that they need not be."""
  vae = networks.open("vae", remat=options.vae_remat)
  return vae.clone(dtype=jnp.float32) if _vae_notes(vae, options) else vae


def _vae_notes(vae: AutoencoderKL, options: Options) -> tuple[str, ...]:
  """Returns a line for the log where the autoencoder does not compute in the dtype of the prior."""
  if jnp.dtype(options.dtype) != jnp.float16 or not vae.force_upcast:
    return ()
  return ("the VAE of Stable Diffusion XL overflows in float16, so its activations are float32; bfloat16 is safe, and "
          "the VAE sdxl-vae-fp16-fix in float16, too",)


SDXL = Family(
  name="Stable Diffusion XL",
  layout="'StableDiffusionXLPipeline' (base, turbo, fine-tunes)",
  matches=lambda index: index.get("_class_name") in PIPELINES,
  files=files,
  open=open_folder,
  random=open_random,
  takes_additions=("unet", "text_encoder", "text_encoder_2"),
  published={
    "sdxl": Published(("stabilityai/stable-diffusion-xl-base-1.0",), _SDXL),
    "sdxl-turbo": Published(("stabilityai/sdxl-turbo",), _TURBO),
  })
