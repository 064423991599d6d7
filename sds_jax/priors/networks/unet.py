"""The text-conditioned U-Net of Stable Diffusion 1.x, 2.x, XL and DeepFloyd IF, by diffusers' configs.

Papers: arXiv:2112.10752 (Stable Diffusion), arXiv:2307.01952 (XL).

The fields are the keys of a diffusers `UNet2DConditionModel` config.json and the parameters have diffusers' names, so a
published folder loads unchanged. Float32 outputs equal those of diffusers. Layout is NHWC throughout.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.attention import AddedKVAttention, TextTimeEmbedding, Transformer2DModel
from sds_jax.priors.networks.layers import (ACTIVATIONS, GroupNorm, ResnetBlock2D, TimestepEmbedding, conv,
                                            sinusoidal_embedding)
from sds_jax.priors.networks.unet_blocks import MidBlock, ModuleFactory, UNetStage
from sds_jax.priors.networks.unet_config import check_unet_config, per_block
from sds_jax.types import Array

_BY_RESNET = ("Resnet", "Simple")
"""Prefixes of the blocks that change the resolution by a residual block."""


TIME_IDS = 6
"""How many numbers stand beside SDXL's pooled text: height and width of the original photo, top and left of the crop,
height and width of the training image."""


class UNet2DConditionModel(nn.Module):
  """Noise predictor: (sample, timesteps, encoder_hidden_states, further conditions) -> prediction, like the sample.

  Attributes are diffusers' config keys; `dtype` is the dtype of activations, `attention_implementation` goes to
  `dot_product.dot_product_attention`, and `views` is the number of neighbouring images of a batch that show one object
  and whose tokens attend to each other (MVDream, arXiv:2308.16512). By diffusers' historical naming
  `attention_head_dim` is the *number* of heads, except in the blocks with `Simple` in their name, where
  `attention_head_dim` is the width of a head. Build the network with `from_config`, which refuses unsupported options.
  """
  sample_size: int | tuple[int, int] | None = None
  in_channels: int = 4
  out_channels: int = 4
  center_input_sample: bool = False
  flip_sin_to_cos: bool = True
  freq_shift: float = 0
  down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
  mid_block_type: str = "UNetMidBlock2DCrossAttn"
  up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
  only_cross_attention: bool = False
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int | tuple[int, ...] = 2
  downsample_padding: int = 1
  mid_block_scale_factor: float = 1.
  act_fn: str = "silu"
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  cross_attention_dim: int = 1280
  cross_attention_norm: str | None = None
  encoder_hid_dim: int | None = None
  transformer_layers_per_block: int | tuple[int, ...] = 1
  attention_head_dim: int | tuple[int, ...] = 8
  num_attention_heads: None = None
  dual_cross_attention: bool = False
  use_linear_projection: bool = False
  upcast_attention: bool = False
  resnet_time_scale_shift: str = "default"
  class_embed_type: str | None = None
  num_class_embeds: None = None
  projection_class_embeddings_input_dim: int | None = None
  addition_embed_type: str | None = None
  addition_embed_type_num_heads: int = 64
  addition_time_embed_dim: int | None = None
  conv_in_kernel: int = 3
  conv_out_kernel: int = 3
  dtype: Any = jnp.float32
  attention_implementation: str = "auto"
  views: int = 1

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> UNet2DConditionModel:
    """Returns the network that a diffusers config.json describes.

    Args:
      config: the parsed config.json.
      **overrides: fields that no config.json has (`dtype`, `attention_implementation`, `views`).

    Raises:
      ValueError: an option is unknown, or would change the function in a way that isn't supported; the message has
        the key, its value and what is supported.
    """
    return cls(**check_unet_config(config), **overrides)

  @property
  def text_dim(self) -> int:
    """Returns the width of the text at the input; the network projects other widths to `cross_attention_dim`."""
    return self.encoder_hid_dim or self.cross_attention_dim

  @property
  def pooled_dim(self) -> int:
    """Returns the width of the pooled text at the input; 0 for a network without this input."""
    if self.addition_embed_type != "text_time":
      return 0
    return self.projection_class_embeddings_input_dim - TIME_IDS * self.addition_time_embed_dim

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    def floats(*shape: int) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(shape, jnp.float32)

    size, batch = 2 ** (len(self.block_out_channels) - 1), self.views
    labels = {None: None, "timestep": floats(batch)}.get(
      self.class_embed_type, floats(batch, self.projection_class_embeddings_input_dim or 0))
    return (floats(batch, size, size, self.in_channels), jax.ShapeDtypeStruct((batch,), jnp.int32),
            floats(batch, 1, self.text_dim), labels,
            *((floats(batch, self.pooled_dim), floats(batch, TIME_IDS)) if self.pooled_dim else ()))

  @nn.compact
  def __call__(self, sample: Array, timesteps: Array, encoder_hidden_states: Array, class_labels: Array | None = None,
               pooled_text: Array | None = None, time_ids: Array | None = None,
               residuals: tuple[Array, ...] | None = None) -> Array:
    """Predicts the noise, v or x_0 of a noisy sample.

    Args:
      sample: [B, H, W, in_channels]; H and W divisible by 2^(number of blocks - 1), B by `views`.
      timesteps: [B], integer or float index.
      encoder_hidden_states: [B, T, text_dim].
      class_labels: [B, projection_class_embeddings_input_dim] for the class embeddings "projection" and
        "simple_projection", [B] for "timestep", None without one.
      pooled_text: [B, pooled_dim], for the added embedding "text_time" (SDXL); None without one.
      time_ids: [B, TIME_IDS] sizes and crop in pixels (arXiv:2307.01952, section 2.2), beside `pooled_text`.
      residuals: of `controlnet.ControlNetModel`; added to the skips and to the output of the middle block.

    Returns:
      [B, H, W, out_channels] of dtype `dtype`.

    Raises:
      ValueError: a shape doesn't fit, or class labels or pooled text are given or missing against the config.
    """
    self._check_inputs(sample, encoder_hidden_states, class_labels)
    self._check_pooled(pooled_text, time_ids)
    x, context = sample.astype(self.dtype), encoder_hidden_states.astype(self.dtype)
    x = 2 * x - 1 if self.center_input_sample else x
    emb = self._embedding(timesteps, class_labels)
    if self.addition_embed_type == "text":
      emb = emb + TextTimeEmbedding(4 * self.block_out_channels[0], self.addition_embed_type_num_heads, self.dtype,
                                    name="add_embedding")(context)
    elif self.pooled_dim:
      emb = emb + self._added_embedding(pooled_text, time_ids)
    if self.encoder_hid_dim is not None:
      # After the pooled text, which is made of the embeddings as they come.
      context = nn.Dense(self.cross_attention_dim, dtype=self.dtype, name="encoder_hid_proj")(context)
    x = conv(self.block_out_channels[0], self.conv_in_kernel, dtype=self.dtype, name="conv_in")(x)
    x, skips = self._down(x, emb, context)
    resnet = self._resnet(output_scale_factor=self.mid_block_scale_factor)
    x = MidBlock(resnet, self._attention(self.mid_block_type, -1), name="mid_block")(x, emb, context)
    if residuals is not None:
      *of_skips, of_middle = residuals
      # Behind the encoder, so that one residual does not change the inputs of the next block.
      skips = tuple(skip + one.astype(self.dtype) for skip, one in zip(skips, of_skips, strict=True))
      x = x + of_middle.astype(self.dtype)
    x = self._up(x, emb, context, skips)
    x = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name="conv_norm_out")(x)
    return conv(self.out_channels, self.conv_out_kernel, dtype=self.dtype, name="conv_out")(ACTIVATIONS[self.act_fn](x))

  def _down(self, x: Array, emb: Array, context: Array) -> tuple[Array, tuple[Array, ...]]:
    # The first convolution's output is a skip, too.
    skips, last = (x,), len(self.down_block_types) - 1
    for i, kind in enumerate(self.down_block_types):
      x, collected = self._stage(kind, i, 0, "down" if i < last else None, name=f"down_blocks_{i}")(x, emb, context)
      skips += collected
    return x, skips

  def _up(self, x: Array, emb: Array, context: Array, skips: tuple[Array, ...]) -> Array:
    last = len(self.up_block_types) - 1
    for i, kind in enumerate(self.up_block_types):
      # An up block has one residual block more, for the skip of the resolution change.
      stage = self._stage(kind, last - i, 1, "up" if i < last else None, name=f"up_blocks_{i}")
      x, skips = stage(x, emb, context, skips)
    return x

  def _added_embedding(self, pooled_text: Array, time_ids: Array) -> Array:
    """Returns the embedding [B, 4 * block_out_channels[0]] of the pooled text and of sinusoids of the time ids."""
    batch = pooled_text.shape[0]
    # One axis of times: each of the six numbers has sinusoids of its own.
    sizes = self._sinusoids(time_ids.reshape(-1), self.addition_time_embed_dim).reshape(batch, -1)
    return TimestepEmbedding(4 * self.block_out_channels[0], dtype=self.dtype, name="add_embedding")(
      jnp.concatenate([pooled_text.astype(self.dtype), sizes], axis=-1))

  def _sinusoids(self, t: Array, dim: int) -> Array:
    return sinusoidal_embedding(t, dim, self.flip_sin_to_cos, self.freq_shift).astype(self.dtype)

  def _embedding(self, timesteps: Array, class_labels: Array | None) -> Array:
    """Returns the embedding [B, 4 * block_out_channels[0]] of the time and of the class labels, if any."""
    dim = self.block_out_channels[0]

    def sinusoids(t: Array) -> Array:
      return self._sinusoids(t, dim)

    emb = TimestepEmbedding(4 * dim, self.act_fn, self.dtype, name="time_embedding")(sinusoids(timesteps))
    if self.class_embed_type is None:
      return emb
    if self.class_embed_type == "timestep":
      return emb + TimestepEmbedding(4 * dim, self.act_fn, self.dtype, name="class_embedding")(sinusoids(class_labels))
    labels = class_labels.astype(self.dtype)
    if self.class_embed_type == "simple_projection":
      return emb + nn.Dense(4 * dim, dtype=self.dtype, name="class_embedding")(labels)
    return emb + TimestepEmbedding(4 * dim, dtype=self.dtype, name="class_embedding")(labels)

  def _per_block(self, value: Any) -> tuple[Any, ...]:
    return per_block(value, len(self.block_out_channels))

  def _stage(self, kind: str, i: int, more_layers: int, resample: str | None, name: str) -> UNetStage:
    """Returns the block of the given kind at resolution i."""
    layers = self._per_block(self.layers_per_block)[i] + more_layers
    return UNetStage(self.block_out_channels[i], layers, self._resnet(), self._attention(kind, i), resample,
                     kind.startswith(_BY_RESNET), self.downsample_padding, self.dtype, name=name)

  def _resnet(self, **kwargs: Any) -> ModuleFactory:
    return partial(ResnetBlock2D, groups=self.norm_num_groups, eps=self.norm_eps, act_fn=self.act_fn,
                   time_scale_shift=self.resnet_time_scale_shift, dtype=self.dtype, **kwargs)

  def _attention(self, kind: str, i: int) -> ModuleFactory | None:
    """Returns the attention behind the residual blocks of a block of the given kind at resolution i, or None."""
    if "CrossAttn" not in kind:
      return None
    # diffusers' misnomer: `attention_head_dim` is a number of heads, but in IF's blocks the size of a head.
    heads_or_size, groups = self._per_block(self.attention_head_dim)[i], self.norm_num_groups
    common = dict(dtype=self.dtype, implementation=self.attention_implementation)
    if "Simple" in kind:
      if self.views > 1:
        raise ValueError(f"views={self.views} is not supported with blocks of kind {kind!r}; supported: 1, or blocks "
                         "of kind CrossAttnDownBlock2D and CrossAttnUpBlock2D")
      return partial(AddedKVAttention, heads_or_size, groups, self.cross_attention_norm == "group_norm", **common)
    return partial(Transformer2DModel, heads_or_size, self._per_block(self.transformer_layers_per_block)[i], groups,
                   self.use_linear_projection, views=self.views, **common)

  def _check_inputs(self, sample: Array, context: Array, class_labels: Array | None) -> None:
    factor = 2 ** (len(self.block_out_channels) - 1)
    if sample.ndim != 4 or sample.shape[-1] != self.in_channels:
      raise ValueError(f"sample has shape {sample.shape}, the network takes [B, H, W, {self.in_channels}]")
    if sample.shape[1] % factor or sample.shape[2] % factor:
      raise ValueError(f"sample of {sample.shape[1]}x{sample.shape[2]}: height and width must be divisible by {factor}")
    if sample.shape[0] % self.views:
      raise ValueError(f"sample has a batch of {sample.shape[0]}; the network looks at {self.views} views of an object "
                       f"together, so the batch must be a multiple of {self.views}")
    if context.ndim != 3 or context.shape[-1] != self.text_dim:
      raise ValueError(f"encoder_hidden_states has shape {context.shape}, the network takes [B, T, {self.text_dim}]")
    if (class_labels is None) != (self.class_embed_type is None):
      raise ValueError(f"class_labels are {'missing' if class_labels is None else 'given'} while class_embed_type is "
                       f"{self.class_embed_type!r}")
    if class_labels is not None and self.class_embed_type != "timestep":
      if class_labels.shape[-1:] != (self.projection_class_embeddings_input_dim,):
        raise ValueError(f"class_labels has shape {class_labels.shape}, the network takes "
                         f"[B, {self.projection_class_embeddings_input_dim}]")

  def _check_pooled(self, pooled_text: Array | None, time_ids: Array | None) -> None:
    for name, value, width in (("pooled_text", pooled_text, self.pooled_dim),
                               ("time_ids", time_ids, TIME_IDS if self.pooled_dim else 0)):
      if (value is None) != (width == 0):
        raise ValueError(f"{name} {'is missing' if value is None else 'is given'} while addition_embed_type is "
                         f"{self.addition_embed_type!r}")
      if value is not None and (value.ndim != 2 or value.shape[-1] != width):
        raise ValueError(f"{name} has shape {value.shape}, the network takes [B, {width}]")
