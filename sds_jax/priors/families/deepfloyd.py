"""DeepFloyd IF's first stage: pixels of 64x64, conditioned on a prompt by T5.

Its U-Net also predicts a variance (arXiv:2102.09672), which is dropped. Its repositories are gated. The configurations
of IF-I-XL are those of the published files, read in public copies. Those of IF-I-M and IF-I-L differ in width alone,
by the published numbers of parameters (0.4 and 0.9 billion), which the networks reproduce.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.assemble import (RandomNetworks, StoredNetworks, check_text, check_unet, make_prior,
                                     positive_integer, read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, Published, Weights
from sds_jax.priors.latent_size import square_side
from sds_jax.priors.loading.checkpoint import COMPONENTS
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.random_weights import random_text_encoder
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import T5_TOKENIZER, T5_TOKENIZER_FILES, open_t5
from sds_jax.priors.spaces import pixel_space

T5_XXL: dict[str, Any] = dict(
  vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
  tie_word_embeddings=False)
"""The text encoder (version 1.1)."""
IF_SCHEDULER: dict[str, Any] = dict(
  num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")


def _unet(width: int) -> dict[str, Any]:
  """Returns the U-Net's configuration; its blocks are 1, 2, 3 and 4 times `width` wide."""
  return dict(
    # Three channels of noise and three of a learned variance.
    sample_size=64, in_channels=3, out_channels=6, block_out_channels=[width * i for i in (1, 2, 3, 4)],
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, layers_per_block=3,
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"], cross_attention_dim=4 * width,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=64, act_fn="gelu", encoder_hid_dim=4096,
    addition_embed_type="text", cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift")


IF_M_UNET, IF_L_UNET, IF_XL_UNET = _unet(192), _unet(320), _unet(704)


def files(index: Config) -> Files:
  """Returns the files of an IFPipeline folder."""
  del index
  return Files({"unet": COMPONENTS["unet"], "text_encoder": COMPONENTS["t5"]}, small=T5_TOKENIZER_FILES,
               tokenizers=T5_TOKENIZER)


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens an IFPipeline folder; reads no weights."""
  del index
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet = networks.open("unet")
  path = folder / "unet" / "config.json"
  space = pixel_space(positive_integer(path, "sample_size", square_side(path, "sample_size", unet.sample_size)))
  check_unet(folder, unet, space)
  text = open_t5(folder, options.dtype, options.variant)
  check_text(folder, unet, text)
  return make_prior(source, space, unet, scheduler, text), networks.weights()


def open_random(source: Source, configs: Mapping[str, Config], options: Options) -> tuple[Prior, Weights]:
  """Opens a prior of published shapes with random weights and random embeddings."""
  networks = RandomNetworks(configs, options.dtype)
  unet = networks.open("unet")
  prior = make_prior(source, pixel_space(unet.sample_size), unet, configs["scheduler"],
                     random_text_encoder(unet.text_dim))
  return prior, networks.weights()


def _published(repo: str, unet: Config) -> Published:
  return Published((repo,), dict(unet=unet, t5=T5_XXL, scheduler=IF_SCHEDULER))


DEEPFLOYD = Family(
  name="DeepFloyd IF",
  layout="'IFPipeline' (the first stage)",
  matches=lambda index: index.get("_class_name") == "IFPipeline",
  files=files,
  open=open_folder,
  random=open_random,
  takes_additions=("unet",),
  published={  # gated: an account has to accept the licence on the model's page, and its token is needed
    "if-m": _published("DeepFloyd/IF-I-M-v1.0", IF_M_UNET),
    "if-l": _published("DeepFloyd/IF-I-L-v1.0", IF_L_UNET),
    "if-xl": _published("DeepFloyd/IF-I-XL-v1.0", IF_XL_UNET),
    "if": _published("DeepFloyd/IF-I-XL-v1.0", IF_XL_UNET),  # the size of published text-to-3D results
  })
