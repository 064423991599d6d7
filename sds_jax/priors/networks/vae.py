"""The variational autoencoder of latent diffusion (arXiv:2112.10752, section 3.1), with the config keys of diffusers.

An image of H x W pixels becomes a normal distribution over latents of H/8 x W/8 (for four blocks). The parameters have
diffusers' names, so a published folder loads unchanged; float32 outputs equal those of diffusers. Layout is NHWC.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.attention import to_heads
from sds_jax.priors.networks.dot_product import dot_product_attention
from sds_jax.priors.networks.layers import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D, conv
from sds_jax.priors.networks.vae_config import check_vae_config
from sds_jax.types import Array

EPS = 1e-6
"""Epsilon of all group norms; published configs have no key for the epsilon."""


def sample_latents(mean: Array, logvar: Array, noise: Array, scaling_factor: float) -> Array:
  """Draws scaled latents for the U-Net: (mean + exp(logvar / 2) * noise) * scaling_factor.

  Args:
    mean, logvar: [B, h, w, latent_channels], from `AutoencoderKL.encode`.
    noise: standard normal, of the mean's shape and dtype. Zeros give the mode.
    scaling_factor: of the autoencoder; scales latents to about unit variance.

  Returns:
    [B, h, w, latent_channels].
  """
  return (mean + jnp.exp(0.5 * logvar) * noise) * scaling_factor


class PixelAttention(nn.Module):
  """Pre-normed, residual self-attention of all pixels with one head: [B, H, W, C] -> [B, H, W, C]."""
  groups: int
  dtype: Any = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    pixels = GroupNorm(self.groups, EPS, self.dtype, name="group_norm")(x).reshape(batch, height * width, channels)
    q, k, v = (to_heads(pixels, channels, heads=1, name=name, dtype=self.dtype) for name in ("to_q", "to_k", "to_v"))
    out = dot_product_attention(q, k, v, implementation=self.implementation).reshape(pixels.shape)
    return x + nn.Dense(channels, dtype=self.dtype, name="to_out_0")(out).reshape(x.shape)


class ResnetStack(nn.Module):
  """Residual blocks of one width, then perhaps a change of resolution: [B, H, W, C] -> [B, H', W', features].

  Attributes:
    features: output channels.
    layers: number of residual blocks.
    resample: "down", "up" or None.
    resnet: keyword arguments of ResnetBlock2D.
    remat: whether a backward pass recomputes the inside of each residual block.
  """
  features: int
  layers: int
  resample: str | None
  resnet: Mapping[str, Any]
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    block = _maybe_remat(ResnetBlock2D, self.remat)
    for i in range(self.layers):
      x = block(self.features, **self.resnet, name=f"resnets_{i}")(x)
    if self.resample == "down":
      # Padding 0 pads at the end only, as the published autoencoders were trained (see Downsample2D).
      return Downsample2D(self.features, padding=0, dtype=self.resnet["dtype"], name="downsamplers_0")(x)
    if self.resample == "up":
      return Upsample2D(self.features, dtype=self.resnet["dtype"], name="upsamplers_0")(x)
    return x


class VAEMidBlock(nn.Module):
  """Residual block, attention (unless `attend` is false), residual block: [B, H, W, C] -> [B, H, W, C]."""
  attend: bool
  implementation: str
  resnet: Mapping[str, Any]
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    block = _maybe_remat(ResnetBlock2D, self.remat)
    x = block(x.shape[-1], **self.resnet, name="resnets_0")(x)
    if self.attend:
      attention = _maybe_remat(PixelAttention, self.remat)
      x = attention(self.resnet["groups"], self.resnet["dtype"], self.implementation, name="attentions_0")(x)
    return block(x.shape[-1], **self.resnet, name="resnets_1")(x)


class Encoder(nn.Module):
  """Image [B, H, W, C] -> [B, H / f, W / f, features], f = 2^(number of widths - 1).

  Attributes:
    features: output channels.
    widths: channels of each resolution, the finest first.
    layers: residual blocks at each resolution.
    mid: keyword arguments of VAEMidBlock.
    resnet, remat: as for ResnetStack.
  """
  features: int
  widths: tuple[int, ...]
  layers: int
  mid: Mapping[str, Any]
  resnet: Mapping[str, Any]
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = conv(self.widths[0], dtype=self.resnet["dtype"], name="conv_in")(x)
    for i, width in enumerate(self.widths):
      resample = "down" if i < len(self.widths) - 1 else None
      x = ResnetStack(width, self.layers, resample, self.resnet, self.remat, name=f"down_blocks_{i}")(x)
    x = VAEMidBlock(**self.mid, resnet=self.resnet, remat=self.remat, name="mid_block")(x)
    return _conv_out(x, self.features, self.resnet)


class Decoder(nn.Module):
  """Latents [B, h, w, C] -> [B, f h, f w, features]; attributes as for Encoder, with `layers` + 1 residual blocks."""
  features: int
  widths: tuple[int, ...]
  layers: int
  mid: Mapping[str, Any]
  resnet: Mapping[str, Any]
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = conv(self.widths[-1], dtype=self.resnet["dtype"], name="conv_in")(x)
    x = VAEMidBlock(**self.mid, resnet=self.resnet, remat=self.remat, name="mid_block")(x)
    for i, width in enumerate(reversed(self.widths)):
      resample = "up" if i < len(self.widths) - 1 else None
      # Decoders of diffusers have one residual block more than the config says.
      x = ResnetStack(width, self.layers + 1, resample, self.resnet, self.remat, name=f"up_blocks_{i}")(x)
    return _conv_out(x, self.features, self.resnet)


def _maybe_remat(block: type[nn.Module], remat: bool) -> type[nn.Module]:
  return nn.remat(block) if remat else block


def _conv_out(x: Array, features: int, resnet: Mapping[str, Any]) -> Array:
  """Applies the last layers of the calling module; the activation is SiLU for any `act_fn`."""
  x = GroupNorm(resnet["groups"], EPS, resnet["dtype"], name="conv_norm_out")(x)
  return conv(features, dtype=resnet["dtype"], name="conv_out")(jax.nn.silu(x))


class AutoencoderKL(nn.Module):
  """An autoencoder; call its methods as `model.apply(variables, image, method="encode")`.

  Attributes are diffusers' config keys and three more: `dtype` (of the encoder's activations; the decoder's are
  float32), `remat` (whether a backward pass recomputes the inside of residual blocks and attention: less memory, more
  work, the same parameter names) and `attention_implementation`, which goes to `dot_product.dot_product_attention`.
  Build the network with `from_config`, which refuses unsupported options. `sample_size` and `force_upcast` (a
  pipeline's hint on its dtype) have no effect.
  """
  in_channels: int = 3
  out_channels: int = 3
  down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
  up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
  block_out_channels: tuple[int, ...] = (64,)
  layers_per_block: int = 1
  act_fn: str = "silu"
  latent_channels: int = 4
  norm_num_groups: int = 32
  sample_size: int | tuple[int, int] = 32
  scaling_factor: float = 0.18215
  force_upcast: bool = True
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True
  mid_block_add_attention: bool = True
  dtype: Any = jnp.float32
  remat: bool = False
  attention_implementation: str = "auto"

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> AutoencoderKL:
    """Returns the network that a diffusers config.json describes.

    Args:
      config: the parsed config.json.
      **overrides: fields that no config.json has (`dtype`, `remat`, `attention_implementation`).

    Raises:
      ValueError: an option is unknown, or would change the function in a way that isn't supported; the message has
        the key, its value and what is supported.
    """
    return cls(**check_vae_config(config), **overrides)

  @property
  def factor(self) -> int:
    """Returns height and width of an image over those of its latents."""
    return 2 ** (len(self.block_out_channels) - 1)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, self.factor, self.factor, self.in_channels), jnp.float32),)

  def setup(self) -> None:
    """Creates encoder, decoder and quantization layers."""
    shared = dict(
      widths=self.block_out_channels, layers=self.layers_per_block, remat=self.remat,
      mid=dict(attend=self.mid_block_add_attention, implementation=self.attention_implementation))
    resnet = dict(groups=self.norm_num_groups, eps=EPS, act_fn=self.act_fn)
    self.encoder = Encoder(2 * self.latent_channels, resnet=dict(resnet, dtype=self.dtype), **shared)
    # The decoder only makes images to look at and is no part of a step, so float32 costs little.
    self.decoder = Decoder(self.out_channels, resnet=dict(resnet, dtype=jnp.float32), **shared)
    if self.use_quant_conv:
      self.quant_conv = conv(2 * self.latent_channels, kernel=1, dtype=self.dtype, name="quant_conv")
    if self.use_post_quant_conv:
      self.post_quant_conv = conv(self.latent_channels, kernel=1, dtype=jnp.float32, name="post_quant_conv")

  def encode(self, image: Array) -> tuple[Array, Array]:
    """Returns the normal distribution of an image's latents; differentiable in the image.

    Args:
      image: [B, H, W, in_channels] in [-1, 1]; H and W divisible by f = 2^(number of blocks - 1).

    Returns:
      (mean, log variance), both [B, H / f, W / f, latent_channels] of dtype `dtype` and before scaling, for
      `sample_latents`. The log variance is clipped to [-30, 20].

    Raises:
      ValueError: the shape doesn't fit.
    """
    if image.ndim != 4 or image.shape[-1] != self.in_channels:
      raise ValueError(f"image has shape {image.shape}, the encoder takes [B, H, W, {self.in_channels}]")
    if image.shape[1] % self.factor or image.shape[2] % self.factor:
      raise ValueError(f"image of {image.shape[1]}x{image.shape[2]}: height and width must be divisible by "
                       f"{self.factor}")
    h = self.encoder(image.astype(self.dtype))
    mean, logvar = jnp.split(self.quant_conv(h) if self.use_quant_conv else h, 2, axis=-1)
    # diffusers clips to the same range; exp of half of it stays finite in float32.
    return mean, jnp.clip(logvar, -30., 20.)

  def decode(self, latents: Array) -> Array:
    """Returns the image of latents.

    Args:
      latents: [B, h, w, latent_channels] before scaling: the U-Net's latents divided by `scaling_factor`.

    Returns:
      [B, f h, f w, out_channels] float32, about in [-1, 1], f as for `encode`.

    Raises:
      ValueError: the shape doesn't fit.
    """
    if latents.ndim != 4 or latents.shape[-1] != self.latent_channels:
      raise ValueError(f"latents have shape {latents.shape}, the decoder takes [B, h, w, {self.latent_channels}]")
    # float32 for any dtype of the prior, like the decoder's layers.
    z = latents.astype(jnp.float32)
    return self.decoder(self.post_quant_conv(z) if self.use_post_quant_conv else z)

  def __call__(self, image: Array) -> Array:
    """Encodes to the mean and decodes: [B, H, W, in_channels] -> [B, H, W, out_channels]."""
    return self.decode(self.encode(image)[0])
