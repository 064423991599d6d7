"""The tiny autoencoder TAESD in place of AutoencoderKL, with the config keys of diffusers' AutoencoderTiny.

The network (github.com/madebyollin/taesd) was distilled from an autoencoder of latent diffusion. Encoder and decoder
are 3x3 convolutions and ReLU, without norms and without attention. The latents are those of the U-Net: they need no
scaling factor, and the encoder has no random draw. Float32 outputs equal those of diffusers. Layout is NHWC.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.config_check import (MAX_WIDTH, Options, ValueRule, check_layers, every, number, optional,
                                                  read_fields, shown, whole)
from sds_jax.priors.networks.layers import ACTIVATIONS, conv, upsample_nearest
from sds_jax.types import Array

_WIDTH, _NUMBER = whole(1, MAX_WIDTH), number()
_FREE: dict[str, ValueRule] = {
  "in_channels": _WIDTH, "out_channels": _WIDTH, "latent_channels": _WIDTH, "scaling_factor": number(0),
  "encoder_block_out_channels": every(_WIDTH), "decoder_block_out_channels": every(_WIDTH),
  "num_encoder_blocks": every(whole(0, 64)), "num_decoder_blocks": every(whole(0, 64)),
}
"""{field of the network: legal values}."""

_NO_EFFECT: dict[str, ValueRule] = {"latent_magnitude": _NUMBER, "latent_shift": _NUMBER,
                                    "block_out_channels": optional(every(_WIDTH))}
"""{key that only stores latents as bytes, or repeats another key: legal values}."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "upsampling_scaling_factor": (2,), "upsample_fn": ("nearest",), "shift_factor": (None, 0.), "force_upcast": (False,),
}
"""{key that is no field: values under which the key changes nothing}."""


class TinyBlock(nn.Module):
  """Three 3x3 convolutions and a skip connection: [B, H, W, features] -> [B, H, W, features]."""
  features: int
  act_fn: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    act, h = ACTIVATIONS[self.act_fn], x
    for i in range(3):
      # torch counts the activations, too, so the convolutions have even numbers.
      h = conv(self.features, dtype=self.dtype, name=f"conv_{2 * i}")(act(h) if i else h)
    # Published networks fuse by ReLU, whatever `act_fn` of the config.
    return jax.nn.relu(h + x)


class TinyEncoder(nn.Module):
  """Image [B, H, W, C] in [0, 1] -> latents [B, H / f, W / f, features], f = 2^(number of stages - 1).

  Attributes:
    features: output channels.
    widths: channels of each resolution, the finest first; all equal.
    blocks: number of residual blocks of each resolution.
    act_fn: name in ACTIVATIONS.
    remat: whether a backward pass recomputes the inside of each residual block.
  """
  features: int
  widths: tuple[int, ...]
  blocks: tuple[int, ...]
  act_fn: str
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    block = nn.remat(TinyBlock) if self.remat else TinyBlock
    # One number for every layer, as torch counts them.
    layer = 0
    for i, (width, count) in enumerate(zip(self.widths, self.blocks)):
      halve = dict(strides=(2, 2), use_bias=False) if i else {}
      x = nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), dtype=self.dtype, name=f"layers_{layer}", **halve)(x)
      for j in range(count):
        x = block(width, self.act_fn, self.dtype, name=f"layers_{layer + 1 + j}")(x)
      layer += 1 + count
    return conv(self.features, dtype=self.dtype, name=f"layers_{layer}")(x)


class TinyDecoder(nn.Module):
  """Latents [B, h, w, C] -> image [B, f h, f w, features] in about [0, 1]; attributes as for TinyEncoder."""
  features: int
  widths: tuple[int, ...]
  blocks: tuple[int, ...]
  act_fn: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # Latents beyond 3 were clamped softly when the network was trained.
    x = 3 * jnp.tanh(x / 3)
    x = ACTIVATIONS[self.act_fn](conv(self.widths[0], dtype=jnp.float32, name="layers_0")(x))
    # The numbers of torch's layers, which count the activation and the upsampling.
    layer = 2
    for i, (width, count) in enumerate(zip(self.widths, self.blocks)):
      if i:
        x = nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, dtype=jnp.float32,
                    name=f"layers_{layer + 1}")(upsample_nearest(x))
        layer += 2
      for j in range(count):
        x = TinyBlock(width, self.act_fn, name=f"layers_{layer + j}")(x)
      layer += count
    return conv(self.features, dtype=jnp.float32, name=f"layers_{layer}")(x)


class AutoencoderTiny(nn.Module):
  """The tiny autoencoder; call its methods as `model.apply(variables, image, method="encode")`.

  Attributes are diffusers' config keys and three more: `dtype` (of the encoder's activations; the decoder's are
  float32), `remat` (whether a backward pass recomputes the inside of residual blocks) and `sample_size`, always None,
  since the network has no size of its own. Build the network with `from_config`, which refuses unsupported options.
  """
  in_channels: int = 3
  out_channels: int = 3
  latent_channels: int = 4
  encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
  decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
  num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
  num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
  act_fn: str = "relu"
  scaling_factor: float = 1.0
  force_upcast: bool = False
  sample_size: None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> AutoencoderTiny:
    """Returns the network that a diffusers config.json describes.

    Args:
      config: the parsed config.json.
      **overrides: fields that no config.json has (`dtype`, `remat`).

    Raises:
      ValueError: an option is unknown or not supported; the message has the key, its value and what is supported.
    """
    return cls(**_read_config(config), **overrides)

  @property
  def factor(self) -> int:
    """Returns height and width of an image over those of its latents."""
    return 2 ** (len(self.encoder_block_out_channels) - 1)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, self.factor, self.factor, self.in_channels), jnp.float32),)

  def setup(self) -> None:
    """Creates encoder and decoder."""
    self.encoder = TinyEncoder(self.latent_channels, self.encoder_block_out_channels, self.num_encoder_blocks,
                               self.act_fn, self.dtype, self.remat)
    # The decoder only makes images to look at and is no part of a step, so float32 costs little.
    self.decoder = TinyDecoder(self.out_channels, self.decoder_block_out_channels, self.num_decoder_blocks,
                               self.act_fn)

  def encode(self, image: Array) -> Array:
    """Returns the latents of an image; differentiable in the image.

    Args:
      image: [B, H, W, in_channels] in [-1, 1], as for `AutoencoderKL`; H and W divisible by `factor`.

    Returns:
      [B, H / f, W / f, latent_channels] of dtype `dtype`, before scaling.

    Raises:
      ValueError: the shape doesn't fit.
    """
    if image.ndim != 4 or image.shape[-1] != self.in_channels:
      raise ValueError(f"image has shape {image.shape}, the encoder takes [B, H, W, {self.in_channels}]")
    if image.shape[1] % self.factor or image.shape[2] % self.factor:
      raise ValueError(f"image of {image.shape[1]}x{image.shape[2]}: height and width must be divisible by "
                       f"{self.factor}")
    # The network's own range of colours is [0, 1].
    return self.encoder(((image + 1) / 2).astype(self.dtype))

  def decode(self, latents: Array) -> Array:
    """Returns the image of latents.

    Args:
      latents: [B, h, w, latent_channels] before scaling: the U-Net's latents divided by `scaling_factor`.

    Returns:
      [B, f h, f w, out_channels] float32, about in [-1, 1].

    Raises:
      ValueError: the shape doesn't fit.
    """
    if latents.ndim != 4 or latents.shape[-1] != self.latent_channels:
      raise ValueError(f"latents have shape {latents.shape}, the decoder takes [B, h, w, {self.latent_channels}]")
    return 2 * self.decoder(latents.astype(jnp.float32)) - 1

  def __call__(self, image: Array) -> Array:
    """Encodes and decodes: [B, H, W, in_channels] -> [B, H, W, out_channels]."""
    return self.decode(self.encode(image))


def _read_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of AutoencoderTiny from a parsed config.json; lists become tuples."""
  name = "AutoencoderTiny"
  options = Options(name, _FREE | _NO_EFFECT, {"act_fn": tuple(a for a in ACTIVATIONS if a != "quick_gelu")}, {},
                    _NEUTRAL)
  fields = {key: value for key, value in read_fields(options, config).items() if key not in _NO_EFFECT}
  stages = len(fields.get("encoder_block_out_channels", (64,) * 4))
  layers = 0
  for side in ("encoder", "decoder"):
    widths, blocks = fields.get(f"{side}_block_out_channels", (64,) * 4), fields.get(f"num_{side}_blocks", (1,) * 4)
    if len(widths) != stages or len(blocks) != stages:
      raise ValueError(f"{name} config: {side}_block_out_channels={list(widths)!r} and num_{side}_blocks="
                       f"{list(blocks)!r} are not supported; supported: {stages} values each, one a resolution")
    # diffusers' convolution between two resolutions keeps its width, so only equal widths fit together.
    if len(set(widths)) > 1:
      raise ValueError(f"{name} config: {side}_block_out_channels={shown(list(widths))} is not supported; supported: "
                       "one width for all resolutions")
    layers += stages + 3 * sum(blocks)
  check_layers(name, layers, num_encoder_blocks=fields.get("num_encoder_blocks"),
               num_decoder_blocks=fields.get("num_decoder_blocks"))
  return fields
