"""Attention modules between the residual blocks of a text-conditioned U-Net."""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.dot_product import dot_product_attention
from sds_jax.priors.networks.layers import GroupNorm, LayerNorm, conv
from sds_jax.types import Array

Dtype = Any


def to_heads(x: Array, features: int, heads: int, *, name: str, dtype: Dtype, use_bias: bool = True) -> Array:
  """Applies the linear layer `name` and splits it into heads: [B, T, D] -> [B, T, heads, features / heads].

  The layer belongs to the calling module.
  """
  y = nn.Dense(features, use_bias=use_bias, dtype=dtype, name=name)(x)
  return y.reshape(*y.shape[:-1], heads, features // heads)


class Attention(nn.Module):
  """Multi-head attention of x [B, T, C] to context [B, S, D] (None: to x) -> [B, T, C]."""
  heads: int
  dtype: Dtype = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None) -> Array:
    context = x if context is None else context
    channels = x.shape[-1]

    project = partial(to_heads, features=channels, heads=self.heads, use_bias=False, dtype=self.dtype)
    out = dot_product_attention(project(x, name="to_q"), project(context, name="to_k"),
                                project(context, name="to_v"),
                                implementation=self.implementation)
    return nn.Dense(channels, dtype=self.dtype, name="to_out_0")(out.reshape(x.shape))


class GEGLU(nn.Module):
  """Gated linear unit with an exact GELU gate (arXiv:2002.05202): [..., C] -> [..., features]."""
  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # One layer for both, as checkpoints store it: value first, gate second.
    value, gate = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
    # The exact GELU, as in torch; JAX's default is the tanh approximation.
    return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
  """GEGLU to four times the width and back: [..., C] -> [..., C]."""
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = GEGLU(4 * x.shape[-1], dtype=self.dtype, name="net_0")(x)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class BasicTransformerBlock(nn.Module):
  """Self-attention, attention to the text, feed-forward; pre-normed, residual: (x [B, T, C], context [B, S, D]).

  With `views` F > 1 the self-attention covers the tokens of F neighbouring images (MVDream, arXiv:2308.16512, section
  3.1).
  """
  heads: int
  dtype: Dtype = jnp.float32
  implementation: str = "auto"
  views: int = 1

  @nn.compact
  def __call__(self, x: Array, context: Array) -> Array:
    norm = partial(LayerNorm, dtype=self.dtype)
    attention = partial(Attention, self.heads, self.dtype, self.implementation)
    # [(G F), T, C] -> [G, F T, C]; the reshape and its inverse change nothing for F = 1.
    group = norm(name="norm1")(x).reshape(x.shape[0] // self.views, -1, x.shape[-1])
    x = x + attention(name="attn1")(group).reshape(x.shape)
    x = x + attention(name="attn2")(norm(name="norm2")(x), context)
    return x + FeedForward(self.dtype, name="ff")(norm(name="norm3")(x))


class Transformer2DModel(nn.Module):
  """Transformer over the pixels of x [B, H, W, C] with context [B, S, D]; residual -> [B, H, W, C].

  Attributes:
    heads: number of attention heads; must divide C.
    layers: number of transformer blocks.
    groups: number of groups of the norm in front.
    use_linear_projection: whether the projections in and out are stored as linear layers (SD 2.x) or 1x1
      convolutions (SD 1.x). The function is the same.
    views: number of neighbouring images whose tokens attend to each other.
  """
  heads: int
  layers: int = 1
  groups: int = 32
  use_linear_projection: bool = False
  dtype: Dtype = jnp.float32
  implementation: str = "auto"
  views: int = 1

  @nn.compact
  def __call__(self, x: Array, context: Array) -> Array:
    b, height, width, channels = x.shape
    if channels % self.heads:
      raise ValueError(f"{channels} channels are not divisible by {self.heads} attention heads")
    project = partial(nn.Dense if self.use_linear_projection else partial(conv, kernel=1), channels, dtype=self.dtype)
    # diffusers fixes this epsilon, whatever `norm_eps` of the config.
    h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
    h = project(name="proj_in")(h).reshape(b, height * width, channels)
    for i in range(self.layers):
      h = BasicTransformerBlock(self.heads, self.dtype, self.implementation, self.views,
                                name=f"transformer_blocks_{i}")(h, context)
    return x + project(name="proj_out")(h.reshape(b, height, width, channels))


class AddedKVAttention(nn.Module):
  """Attention of the pixels of x [B, H, W, C] to context [B, S, D] and to each other; residual -> [B, H, W, C].

  One softmax covers text and pixels: the text's keys and values precede the pixels' keys and values
  (arXiv:2112.10741, section 4.1; DeepFloyd IF).

  Attributes:
    head_dim: width of a head; must divide C.
    groups: number of groups of the pixels' norm.
    context_norm: whether the text is group-normed, in 32 groups of channels over all tokens; needs D divisible by 32.
  """
  head_dim: int
  groups: int = 32
  context_norm: bool = False
  dtype: Dtype = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array, context: Array) -> Array:
    b, height, width, channels = x.shape
    if channels % self.head_dim:
      raise ValueError(f"{channels} channels are not divisible by attention heads of {self.head_dim}")
    if self.context_norm:
      # Tokens take the place of rows, with a width of 1, since the norm wants [B, H, W, C].
      context = GroupNorm(32, 1e-5, self.dtype, name="norm_cross")(context[:, :, None])[:, :, 0]
    pixels = GroupNorm(self.groups, 1e-5, self.dtype, name="group_norm")(x).reshape(b, height * width, channels)

    project = partial(to_heads, features=channels, heads=channels // self.head_dim, dtype=self.dtype)
    k = jnp.concatenate([project(context, name="add_k_proj"), project(pixels, name="to_k")], axis=1)
    v = jnp.concatenate([project(context, name="add_v_proj"), project(pixels, name="to_v")], axis=1)
    out = dot_product_attention(project(pixels, name="to_q"), k, v, implementation=self.implementation)
    return x + nn.Dense(channels, dtype=self.dtype, name="to_out_0")(out.reshape(x.shape))


class AttentionPooling(nn.Module):
  """Attention pooling: the mean of context [B, T, C] plus a learned vector attends to all tokens -> [B, C]."""
  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, context: Array) -> Array:
    batch, _, channels = context.shape
    position = self.param("positional_embedding", nn.initializers.normal(channels**-0.5), (1, channels))
    query = context.mean(axis=1, keepdims=True) + position[None].astype(self.dtype)
    context = jnp.concatenate([query, context], axis=1)

    project = partial(to_heads, features=channels, heads=self.heads, dtype=self.dtype)
    pooled = dot_product_attention(project(query, name="q_proj"), project(context, name="k_proj"),
                                   project(context, name="v_proj"))
    return pooled.reshape(batch, channels)


class TextTimeEmbedding(nn.Module):
  """The pooled text, to add to the time embedding: [B, T, C] -> [B, features]."""
  features: int
  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, context: Array) -> Array:
    pooled = AttentionPooling(self.heads, self.dtype, name="pool")(
        LayerNorm(dtype=self.dtype, name="norm1")(context))
    projected = nn.Dense(self.features, dtype=self.dtype, name="proj")(pooled)
    return LayerNorm(dtype=self.dtype, name="norm2")(projected[:, None])[:, 0]
