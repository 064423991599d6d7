"""The settings of the shipped view prior: networks, noise schedule, optimisation.

The prior is a small Zero-1-to-3 (arXiv:2303.11328). As in the paper, the photo enters twice: its pixels behind the
channels of z_t at the input of the U-Net, and through a CLIP image encoder, whose tokens are joined to the pose and
projected (`cc_projection`) into cross-attention. Zeros in place of both inputs are the null condition. Differences from
the paper:

  - 4x4 pixel patches as in the text prior (`recipe`) replace the autoencoder, and the U-Net starts from the weights of
    the text prior;
  - cross-attention reads the tokens of all 64 patches of the photo besides the global token, because a small network
    cannot represent an object in a single vector; the image encoder is small and trained jointly;
  - the pose also enters like the camera of the text prior: as `class_labels` and as the rays of the patches;
  - `elevation_head`, on the first token, estimates the elevation of the photo, a part of the pose.
"""
from __future__ import annotations

from sds_jax.shapeworld import recipe
from sds_jax.views.poses import POSE_DIM

IMAGE_ENCODER = dict(
    architectures=["CLIPVisionModelWithProjection"], model_type="clip_vision_model", hidden_size=128,
    intermediate_size=512, projection_dim=128, num_hidden_layers=3, num_attention_heads=4, num_channels=3,
    image_size=recipe.IMAGE_SIZE, patch_size=8, hidden_act="quick_gelu", layer_norm_eps=1e-5)

# `out_features` is the width of the cross-attention in the text prior, the start of the U-Net.
PROJECTION = dict(in_features=IMAGE_ENCODER["projection_dim"] + POSE_DIM,
                  out_features=recipe.UNET["cross_attention_dim"])

ELEVATION_HEAD = dict(in_features=IMAGE_ENCODER["projection_dim"])

FEATURE_EXTRACTOR = dict(
    image_processor_type="CLIPImageProcessor", size=dict(height=recipe.IMAGE_SIZE, width=recipe.IMAGE_SIZE),
    do_center_crop=False, do_rescale=True, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)

UNET = dict(recipe.UNET, in_channels=recipe.UNET["in_channels"] + 3 * recipe.PIXEL_UNSHUFFLE**2)
"""Order of the input channels: z_t, the photo, the rays."""

# The U-Net starts from the weights of the text prior, so both share the noise schedule.
SCHEDULER = recipe.SCHEDULER

TRAINING = dict(
    num_images=12_000, steps=16_000, batch_size=16, learning_rate=7e-4, warmup=200, decay=0.25, weight_decay=0.01,
    ema_decay=0.999, drop_condition=0.1, clip_norm=1.0, max_loss_weight=20.0, noise_power=2.0, elevation_weight=0.2,
    front_weight=1.0, chair_weight=1.0)
