"""The settings of the shipped text prior: networks, noise schedule, optimisation.

The U-Net works on 4x4 pixel patches (64x64x3 -> 16x16x48). On CPUs its convolutions become matrix products of a
favourable shape, about twice as fast per FLOP as 64-channel convolutions at 32x32. The camera enters the U-Net twice:
as a vector (diffusers' `class_embed_type="projection"`), and as the ray of each patch in extra channels behind the
image channels, so that the content of a patch can depend on its own ray. Zeros in both mean an unknown camera. The text
enters twice, too: token by token through attention, and as a pooled vector (`addition_embed_type="text"`) with a scale
and a shift for every residual block.

The network predicts the clean image. A patch has 48 numbers and the first level 64 channels. Predictions of noise or of
v carry all noise of a patch through the network and stay noisy (arXiv:2511.13720); here, samples of a v-prediction
after 1,800 steps were full of pixel noise.

Noise levels are drawn as t = 1 - u^`noise_power`. An object of a single colour shows through all but the strongest
noise, so with uniform t the text hardly matters to the loss: after 1,500 steps 3% of 32 samples had the right shape,
and 22% with the power 3.
"""
from __future__ import annotations

from sds_jax.shapeworld.tokenizer import MAX_TOKENS
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM

IMAGE_SIZE = 64
PIXEL_UNSHUFFLE = 4

# `vocab_size` and the special token ids are added by `train_prior`, from the files of the tokenizer.
TEXT_ENCODER = dict(
    architectures=["CLIPTextModel"], model_type="clip_text_model", hidden_size=128, intermediate_size=512,
    num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=MAX_TOKENS, hidden_act="quick_gelu",
    layer_norm_eps=1e-5, projection_dim=128)

# The rays are input channels only; the output has the channels of the patches.
UNET = dict(
    _class_name="UNet2DConditionModel", sample_size=IMAGE_SIZE // PIXEL_UNSHUFFLE,
    in_channels=3 * PIXEL_UNSHUFFLE**2 + RAY_DIM, out_channels=3 * PIXEL_UNSHUFFLE**2,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], block_out_channels=[64, 128], layers_per_block=1,
    cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16, norm_eps=1e-5, act_fn="silu",
    use_linear_projection=True, flip_sin_to_cos=True, freq_shift=0, center_input_sample=False, downsample_padding=1,
    mid_block_scale_factor=1, class_embed_type="projection", projection_class_embeddings_input_dim=CAMERA_DIM,
    addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift")

# `clip_sample` is exact here: pixels are in [-1, 1] and the network predicts pixels.
SCHEDULER = dict(
    _class_name="DDIMScheduler", num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", beta_start=1e-4,
    beta_end=0.02, prediction_type="sample", clip_sample=True, clip_sample_range=1.0, set_alpha_to_one=True,
    steps_offset=0, trained_betas=None, timestep_spacing="leading", rescale_betas_zero_snr=False)

TRAINING = dict(
    num_images=20_000, steps=12_000, batch_size=16, learning_rate=1e-3, warmup=200, decay=0.25, weight_decay=0.01,
    ema_decay=0.999, drop_text=0.12, drop_camera=0.15, clip_norm=1.0,
    max_loss_weight=20.0, noise_power=3.0)
