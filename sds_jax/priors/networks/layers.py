"""Layers of U-Nets and autoencoders, without attention. The layout is NHWC.

Submodules have the names that diffusers gives them (`conv1`, `time_emb_proj`, ...), so that the table from checkpoint
names to Flax paths stays one rule (see names.py).
"""
from __future__ import annotations

from functools import partial
from typing import Any, Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.types import Array

Dtype = Any

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "relu": jax.nn.relu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  # OpenAI's approximation of GELU; CLIP's published weights were trained with it.
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""Activation functions by their names in published configs; `gelu` is the exact function."""


def conv(features: int, kernel: int = 3, stride: int = 1, padding: int | None = None, *, dtype: Dtype,
         name: str) -> nn.Conv:
  """Returns a square convolution with torch's symmetric padding (None: `same`, for odd kernels)."""
  pad = (kernel - 1) // 2 if padding is None else padding
  return nn.Conv(features, (kernel, kernel), strides=(stride, stride), padding=((pad, pad), (pad, pad)), dtype=dtype,
                 name=name)


class GroupNorm(nn.Module):
  """Group normalization (arXiv:1803.08494) over H, W and the channels of a group: [B, H, W, C] -> [B, H, W, C].

  Statistics are computed in float32 in two passes, for any `dtype`; normalization, scale and shift are then one
  multiply-add per element. (Flax's own norms mix dtypes, which strict promotion refuses in bfloat16.)
  """
  groups: int
  epsilon: float
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, c = x.shape
    if c % self.groups:
      raise ValueError(f"{c} channels are not divisible by {self.groups} groups")
    scale = self.param("scale", nn.initializers.ones, (c,)).astype(jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (c,)).astype(jnp.float32)
    x = x.astype(jnp.float32)
    grouped = x.reshape(b, height * width, self.groups, c // self.groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large against the spread.
    var = jnp.square(grouped - mean).mean(axis=(1, 3))

    def per_channel(v: Array) -> Array:
      return jnp.repeat(v.reshape(b, self.groups), c // self.groups, axis=1)

    a = per_channel(jax.lax.rsqrt(var + self.epsilon)) * scale[None]
    # (x - mean) * a + bias as x * a + shift: one multiply-add for each element.
    shift = bias[None] - per_channel(mean) * a
    return (x * a[:, None, None] + shift[:, None, None]).astype(self.dtype)


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, in float32 for any `dtype`: [B, T, C] -> [B, T, C]."""
  epsilon: float = 1e-5
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(jnp.float32)
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
    return (x * scale[None, None] + bias[None, None]).astype(self.dtype)


def sinusoidal_embedding(t: Array, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.) -> Array:
  """Returns sinusoids of the time index (arXiv:1706.03762, section 3.5).

  Args:
    t: [B] time index, integer or float.
    dim: number of features; a zero fills up an odd number.
    flip_sin_to_cos: whether the cosines come first.
    freq_shift: frequencies are 10000^(-i / (dim/2 - freq_shift)).

  Returns:
    [B, dim] float32.
  """
  half = dim // 2
  # float32: in bfloat16 neighbouring times would share an embedding.
  exponent = -jnp.log(jnp.float32(10000.)) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
  angle = t.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
  parts = [jnp.cos(angle), jnp.sin(angle)] if flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
  return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


class TimestepEmbedding(nn.Module):
  """Two-layer perceptron of sinusoids or other features: [B, D] -> [B, features]."""
  features: int
  act_fn: str = "silu"
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x)
    return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(ACTIVATIONS[self.act_fn](x))


class ResnetBlock2D(nn.Module):
  """Residual block with a time embedding, or without: (x [B, H, W, C], emb [B, D] or None) -> [B, H, W, features].

  Attributes:
    features: output channels; where the input has another number, a 1x1 `conv_shortcut` follows the input.
    groups, eps: number of groups and epsilon of both group norms.
    act_fn: name in ACTIVATIONS.
    time_scale_shift: "default" adds the embedding before the second norm, "scale_shift" modulates after it.
    output_scale_factor: divisor of the sum of both branches.
    resample: "down" halves height and width of both branches in front of the first convolution by `average_pool`, "up"
      doubles them by `upsample_nearest`, None keeps them.
  """
  features: int
  groups: int = 32
  eps: float = 1e-5
  act_fn: str = "silu"
  time_scale_shift: str = "default"
  output_scale_factor: float = 1.
  resample: str | None = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, emb: Array | None = None) -> Array:
    act = ACTIVATIONS[self.act_fn]
    modulate = emb is not None and self.time_scale_shift == "scale_shift"
    h = act(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
    if self.resample is not None:
      resample = {"down": average_pool, "up": upsample_nearest}[self.resample]
      x, h = resample(x), resample(h)
    h = conv(self.features, dtype=self.dtype, name="conv1")(h)
    if emb is not None:
      emb = nn.Dense(self.features * (2 if modulate else 1), dtype=self.dtype, name="time_emb_proj")(act(emb))
      emb = emb[:, None, None, :]
    if emb is not None and not modulate:
      h = h + emb
    h = GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h)
    if modulate:
      scale, shift = jnp.split(emb, 2, axis=-1)
      h = h * (1 + scale) + shift
    h = conv(self.features, dtype=self.dtype, name="conv2")(act(h))
    if x.shape[-1] != self.features:
      x = conv(self.features, kernel=1, dtype=self.dtype, name="conv_shortcut")(x)
    return (x + h) / self.output_scale_factor


def average_pool(x: Array) -> Array:
  """Averages blocks of 2x2 pixels: [B, H, W, C] -> [B, H/2, W/2, C]."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_nearest(x: Array) -> Array:
  """Repeats each pixel 2x2 times: [B, H, W, C] -> [B, 2H, 2W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Downsample2D(nn.Module):
  """Convolution of stride 2: [B, H, W, C] -> [B, H/2, W/2, features]. Padding 0 pads a row and a column at the end."""
  features: int
  padding: int = 1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.padding == 0:
      # torch's convolutions pad both sides alike, so the row and the column at the end are padded before.
      x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return conv(self.features, stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Upsample2D(nn.Module):
  """Nearest neighbour, then a convolution: [B, H, W, C] -> [B, 2H, 2W, features]."""
  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return conv(self.features, dtype=self.dtype, name="conv")(upsample_nearest(x))
