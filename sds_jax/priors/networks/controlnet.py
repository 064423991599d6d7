"""ControlNet (arXiv:2302.05543): a copy of a U-Net's encoder that reads an image, such as a depth map.

The fields are the keys of a diffusers `ControlNetModel` config.json and the parameters have diffusers' names, so a
published folder loads unchanged. Float32 outputs equal those of diffusers. Layout is NHWC.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.config_check import (MAX_WIDTH, ValueRule, check_choice, check_values, every, optional,
                                                  whole)
from sds_jax.priors.networks.layers import conv
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.networks.unet_blocks import MidBlock
from sds_jax.priors.networks.unet_config import check_unet_config
from sds_jax.types import Array

_NAME = "ControlNetModel"
_FREE: dict[str, ValueRule] = {
  "conditioning_channels": whole(1, MAX_WIDTH), "conditioning_embedding_out_channels": every(whole(1, MAX_WIDTH))}
_CHOICES: dict[str, tuple[Any, ...]] = {
  "controlnet_conditioning_channel_order": ("rgb", "bgr"), "global_pool_conditions": (False,)}
"""{key that a U-Net's config.json lacks: supported values}; `global_pool_conditions` pools away where an object is."""
_OF_A_DECODER = ("out_channels", "up_block_types", "conv_in_kernel", "conv_out_kernel", "center_input_sample")
"""Keys of a U-Net that a ControlNet lacks."""


class ConditioningEmbedding(nn.Module):
  """Image [B, f H, f W, C] -> [B, H, W, features], f = 2^(number of widths - 1).

  Attributes:
    features: output channels.
    widths: channels of each resolution, the finest first.
  """
  features: int
  widths: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array) -> Array:
    x = jax.nn.silu(conv(self.widths[0], dtype=self.dtype, name="conv_in")(image.astype(self.dtype)))
    for i, (width, following) in enumerate(zip(self.widths, self.widths[1:])):
      x = jax.nn.silu(conv(width, dtype=self.dtype, name=f"blocks_{2 * i}")(x))
      x = jax.nn.silu(conv(following, stride=2, dtype=self.dtype, name=f"blocks_{2 * i + 1}")(x))
    return conv(self.features, dtype=self.dtype, name="conv_out")(x)


class ControlNetModel(UNet2DConditionModel):
  """Encoder of a U-Net with an image as input: (z, t, text, image) -> residuals for the U-Net's skips and middle.

  Attributes are those of the U-Net without a decoder, and:
    conditioning_channels: channels of the image.
    conditioning_embedding_out_channels: widths of the image's embedding, the finest resolution first.
    controlnet_conditioning_channel_order: "rgb", or "bgr" for a network that was trained on exchanged channels.
  """
  conditioning_channels: int = 3
  conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
  controlnet_conditioning_channel_order: str = "rgb"

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> ControlNetModel:
    """Returns the network that a diffusers config.json describes.

    Args:
      config: the parsed config.json.
      **overrides: fields that no config.json has (`dtype`, `attention_implementation`).

    Raises:
      ValueError: an option is unknown or not supported; the message has the key, its value and what is supported.
    """
    check_values(_NAME, config, _FREE | {"mid_block_type": optional(ValueRule("a text", lambda v: isinstance(v, str)))})
    for key, choices in _CHOICES.items():
      if key in config:
        check_choice(_NAME, key, config[key], choices)
    for key in _OF_A_DECODER:
      if key in config:
        raise ValueError(f"{_NAME} config: {key} is not a known option")
    extra = {key: tuple(value) if isinstance(value := config[key], list) else value
             for key in (*_FREE, "controlnet_conditioning_channel_order") if key in config}
    rest = {key: value for key, value in config.items() if key not in {**_FREE, **_CHOICES}}
    return cls(**_fields_of_encoder(rest), **extra, **overrides)

  @property
  def factor(self) -> int:
    """Returns height and width of the image over those of z."""
    return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    sample, *others = super().example_inputs()
    side = sample.shape[1] * self.factor
    image = jax.ShapeDtypeStruct((1, side, side, self.conditioning_channels), jnp.float32)
    return (sample, *others[:2], image)

  @nn.compact
  def __call__(self, sample: Array, timesteps: Array, encoder_hidden_states: Array, image: Array) -> tuple[Array, ...]:
    """Computes the residuals of the U-Net's skips and, as the last one, of its middle block.

    Args:
      sample: [B, H, W, in_channels], the U-Net's input.
      timesteps: [B], integer or float index.
      encoder_hidden_states: [B, T, text_dim].
      image: [B, f H, f W, conditioning_channels] in [0, 1].

    Returns:
      Arrays [B, h, w, c] of dtype `dtype` in the order of the skips, for `UNet2DConditionModel`'s `residuals`.

    Raises:
      ValueError: a shape doesn't fit.
    """
    self._check_inputs(sample, encoder_hidden_states, None)
    wanted = (*(self.factor * side for side in sample.shape[1:3]), self.conditioning_channels)
    if image.shape[1:] != wanted:
      raise ValueError(f"image has shape {image.shape}, the network takes [B, {', '.join(map(str, wanted))}]")
    image = image[..., ::-1] if self.controlnet_conditioning_channel_order == "bgr" else image
    context, width = encoder_hidden_states.astype(self.dtype), self.block_out_channels[0]
    emb = self._embedding(timesteps, None)
    x = conv(width, dtype=self.dtype, name="conv_in")(sample.astype(self.dtype))
    x = x + ConditioningEmbedding(width, self.conditioning_embedding_out_channels, self.dtype,
                                  name="controlnet_cond_embedding")(image)
    x, skips = self._down(x, emb, context)
    resnet = self._resnet(output_scale_factor=self.mid_block_scale_factor)
    x = MidBlock(resnet, self._attention(self.mid_block_type, -1), name="mid_block")(x, emb, context)
    # The paper's zero convolutions: zero before training, so that the U-Net begins unchanged.
    outputs = [conv(skip.shape[-1], kernel=1, dtype=self.dtype, name=f"controlnet_down_blocks_{i}")(skip)
               for i, skip in enumerate(skips)]
    return (*outputs, conv(x.shape[-1], kernel=1, dtype=self.dtype, name="controlnet_mid_block")(x))


def _fields_of_encoder(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of the U-Net's encoder from a parsed config.json."""
  for key in ("class_embed_type", "encoder_hid_dim", "addition_embed_type"):
    if key in config:
      check_choice(_NAME, key, config[key], (None,))
  try:
    fields = check_unet_config(config)
  except ValueError as error:
    raise ValueError(str(error).replace("UNet2DConditionModel config", f"{_NAME} config")) from error
  return fields | dict(up_block_types=())
