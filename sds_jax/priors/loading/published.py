"""What the `config.json` files of published models say, as far as it makes a difference to the networks.

Read in public mirrors of Stable Diffusion 1.4 (1.5 has the same) and 2.1-base; 2.1 differs in the image size and in
what its U-Net predicts. DeepFloyd IF's repositories are gated: its three are from diffusers' own conversion script and
the numbers of parameters that were published with them (0.4, 0.9 and 4.3 billion), which these reproduce. Of
Zero-1-to-3's folders the image encoder, the autoencoder and the projection were read on the pages of the models; the
U-Net and the scheduler are those of the conversion script that made such folders (kxhit/zero123-hf).
"""
from __future__ import annotations

from typing import Any

Config = dict[str, Any]

SD1_UNET: Config = dict(
  sample_size=64, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2,
  down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], cross_attention_dim=768, attention_head_dim=8,
  up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
SD2_UNET: Config = SD1_UNET | dict(
  attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True)
ZERO123_UNET: Config = SD1_UNET | dict(sample_size=32, in_channels=8)
"""Its channels are those of the noisy latents, then those of the picture's."""
SD_VAE: Config = dict(
  act_fn="silu", block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4, in_channels=3,
  latent_channels=4, layers_per_block=2, norm_num_groups=32, out_channels=3, sample_size=512,
  up_block_types=["UpDecoderBlock2D"] * 4)

CLIP_L: Config = dict(
  vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
  max_position_embeddings=77, hidden_act="quick_gelu")
"""Text encoder of Stable Diffusion 1."""
OPEN_CLIP_H: Config = CLIP_L | dict(
  hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
"""Text encoder of Stable Diffusion 2, without the last layer."""
CLIP_L_VISION: Config = dict(
  hidden_size=1024, intermediate_size=4096, projection_dim=768, num_hidden_layers=24, num_attention_heads=16,
  image_size=224, patch_size=14, hidden_act="quick_gelu")
"""Image encoder of Zero-1-to-3, which is CLIP ViT-L/14's."""
CAMERA_PROJECTION: Config = dict(_class_name="CLIPCameraProjection", embedding_dim=768, additional_embeddings=4)

T5_XXL: Config = dict(
  vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
  tie_word_embeddings=False)
"""Text encoder of DeepFloyd IF (version 1.1)."""

SD_SCHEDULER: Config = dict(
  num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
  prediction_type="epsilon")
IF_SCHEDULER: Config = dict(
  num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")


def _if_unet(width: int) -> Config:
  """The first stage of DeepFloyd IF whose widths are 1, 2, 3 and 4 times `width`; half its outputs are a variance."""
  return dict(
    sample_size=64, in_channels=3, out_channels=6, block_out_channels=[width * i for i in (1, 2, 3, 4)],
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, layers_per_block=3,
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"], cross_attention_dim=4 * width,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=64, act_fn="gelu", encoder_hid_dim=4096,
    addition_embed_type="text", cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift")


IF_M_UNET, IF_L_UNET, IF_XL_UNET = _if_unet(192), _if_unet(320), _if_unet(704)

_SD1: dict[str, Config] = dict(unet=SD1_UNET, vae=SD_VAE, clip_text=CLIP_L, scheduler=SD_SCHEDULER)
_SD2: dict[str, Config] = dict(unet=SD2_UNET, vae=SD_VAE, clip_text=OPEN_CLIP_H, scheduler=SD_SCHEDULER)
_IF: dict[str, Config] = dict(t5=T5_XXL, scheduler=IF_SCHEDULER)
_ZERO123: dict[str, Config] = dict(
  unet=ZERO123_UNET, vae=SD_VAE | dict(sample_size=256), image_encoder=CLIP_L_VISION, cc_projection=CAMERA_PROJECTION,
  scheduler=SD_SCHEDULER)

PRIORS: dict[str, dict[str, Config]] = {
  "sd15": _SD1,
  "sd21-base": _SD2,
  "sd21": _SD2 | dict(unet=SD2_UNET | dict(sample_size=96), scheduler=SD_SCHEDULER | dict(
    prediction_type="v_prediction")),
  "if-m": _IF | dict(unet=IF_M_UNET),
  "if-l": _IF | dict(unet=IF_L_UNET),
  "if-xl": _IF | dict(unet=IF_XL_UNET),
  "if": _IF | dict(unet=IF_XL_UNET),
  "zero123": _ZERO123,
  "zero123-xl": _ZERO123,
  "stable-zero123": _ZERO123,
}
"""Name of a published model, as `sources.HUB_IDS` has it -> its components' configurations, by `checkpoint.COMPONENTS`'
names, and its scheduler's."""

TEXT_TOKENS = 77
"""Length of all their texts: what their text encoders put out is [n, TEXT_TOKENS, width]."""
