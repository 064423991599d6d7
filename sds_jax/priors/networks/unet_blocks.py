"""The stages of a text-conditioned U-Net, with the residual blocks and the attention as arguments."""
from __future__ import annotations

from typing import Any, Callable

import flax.linen as nn
import jax.numpy as jnp

from sds_jax.priors.networks.layers import Downsample2D, Upsample2D
from sds_jax.types import Array

ModuleFactory = Callable[..., nn.Module]


class UNetStage(nn.Module):
  """Residual blocks, each perhaps with attention behind, then perhaps a change of resolution.

  A down block collects its outputs as skips; an up block takes skips and concatenates them to its inputs.

  Attributes:
    features: output channels.
    layers: number of residual blocks.
    resnet: (features, name=, resample=) -> module from (x, emb) to x; see ResnetBlock2D.
    attention: (name=) -> module from (x, context) to x, or None.
    resample: "down", "up" or None.
    resample_by_resnet: whether one more residual block changes the resolution (IF), or a convolution alone (SD).
    downsample_padding: padding of the convolution of stride 2.
  """
  features: int
  layers: int
  resnet: ModuleFactory
  attention: ModuleFactory | None
  resample: str | None
  resample_by_resnet: bool = False
  downsample_padding: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, emb: Array, context: Array,
               skips: tuple[Array, ...] | None = None) -> tuple[Array, tuple[Array, ...]]:
    """(x [B, H, W, C], emb [B, D], context [B, T, D'], skips or None) -> (x, skips left over or outputs collected)."""
    collected = []
    for i in range(self.layers):
      if skips is not None:
        # The newest skip first: up blocks run through the down blocks' outputs backwards.
        x = jnp.concatenate([x, skips[-1]], axis=-1)
        skips = skips[:-1]
      x = self.resnet(self.features, name=f"resnets_{i}")(x, emb)
      if self.attention is not None:
        x = self.attention(name=f"attentions_{i}")(x, context)
      collected.append(x)
    if self.resample is not None:
      x = self._resampled(x, emb)
      collected.append(x)
    return x, tuple(collected) if skips is None else skips

  def _resampled(self, x: Array, emb: Array) -> Array:
    name = f"{self.resample}samplers_0"
    if self.resample_by_resnet:
      return self.resnet(self.features, resample=self.resample, name=name)(x, emb)
    if self.resample == "down":
      return Downsample2D(self.features, self.downsample_padding, self.dtype, name=name)(x)
    return Upsample2D(self.features, self.dtype, name=name)(x)


class MidBlock(nn.Module):
  """Residual block, attention, residual block, all at the lowest resolution: [B, H, W, C] -> [B, H, W, C].

  Attributes are those of UNetStage.
  """
  resnet: ModuleFactory
  attention: ModuleFactory

  @nn.compact
  def __call__(self, x: Array, emb: Array, context: Array) -> Array:
    x = self.resnet(x.shape[-1], name="resnets_0")(x, emb)
    x = self.attention(name="attentions_0")(x, context)
    return self.resnet(x.shape[-1], name="resnets_1")(x, emb)
