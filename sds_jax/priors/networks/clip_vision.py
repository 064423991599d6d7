"""The image encoder of CLIP (arXiv:2103.00020), with the config keys and parameter names of transformers."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.clip import CLIPEncoder, check_clip_config
from sds_jax.priors.networks.layers import LayerNorm
from sds_jax.types import Array



class CLIPVisionEmbeddings(nn.Module):
  """Class token and patches plus position embeddings: [B, S, S, C] -> [B, 1 + (S / patch)^2, D]."""
  width: int
  patch: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    patches = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch), "VALID", use_bias=False,
                      dtype=self.dtype, name="patch_embedding")(pixels)
    patches = patches.reshape(pixels.shape[0], -1, self.width)
    first = self.param("class_embedding", nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
    tokens = jnp.concatenate([jnp.broadcast_to(first, (pixels.shape[0], 1, self.width)), patches], axis=1)
    places = nn.Embed(tokens.shape[1], self.width, dtype=self.dtype, name="position_embedding")
    return tokens + places(jnp.arange(tokens.shape[1]))[None]


class CLIPVisionTransformer(nn.Module):
  """Embeddings, encoder and norms; gives the parameters the prefix `vision_model`."""
  embeddings: Mapping[str, Any]
  encoder: Mapping[str, Any]
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    x = CLIPVisionEmbeddings(**self.embeddings, dtype=self.dtype, name="embeddings")(pixels)
    x = LayerNorm(epsilon=self.eps, dtype=self.dtype, name="pre_layrnorm")(x)  # the name in all checkpoints
    x = CLIPEncoder(**self.encoder, dtype=self.dtype, name="encoder")(x)[-1]
    return LayerNorm(epsilon=self.eps, dtype=self.dtype, name="post_layernorm")(x)


class CLIPVisionModelWithProjection(nn.Module):
  """CLIP's image encoder, with tokens projected to the space shared with text.

  Attributes are the keys of a transformers CLIPVisionConfig; `dtype` is the dtype of activations.
  """
  hidden_size: int = 768
  intermediate_size: int = 3072
  projection_dim: int = 512
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  num_channels: int = 3
  image_size: int = 224
  patch_size: int = 32
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  dtype: Any = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> CLIPVisionModelWithProjection:
    """Returns the network that a transformers config.json describes.

    Raises:
      ValueError: an option is unknown or unsupported; the message has the key, its value and what is supported.
    """
    known = {field.name for field in dataclasses.fields(cls)} - {"dtype", "parent", "name"}
    check_clip_config("CLIPVisionModelWithProjection", config, known)
    return cls(**{key: value for key, value in config.items() if key in known}, **overrides)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, self.image_size, self.image_size, self.num_channels), jnp.float32),)

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    """Encodes normalised pixels [B, image_size, image_size, num_channels] to [B, 1 + patches, projection_dim].

    The first token, transformers' `image_embeds`, stands for the whole image. The others stand for its patches, row by
    row.

    Raises:
      ValueError: the image has another size, the heads don't divide hidden_size, or the patches don't divide
        image_size.
    """
    if pixels.shape[1:] != (self.image_size, self.image_size, self.num_channels):
      raise ValueError(f"pixels have shape {pixels.shape}, the image encoder takes "
                       f"[B, {self.image_size}, {self.image_size}, {self.num_channels}]")
    for whole, parts in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
      if getattr(self, whole) % getattr(self, parts):
        raise ValueError(f"{whole}={getattr(self, whole)} is not divisible by {parts}={getattr(self, parts)}")
    layer = dict(heads=self.num_attention_heads, features=self.intermediate_size, hidden_act=self.hidden_act,
                 eps=self.layer_norm_eps, causal=False)
    tokens = CLIPVisionTransformer(
      dict(width=self.hidden_size, patch=self.patch_size), dict(layers=self.num_hidden_layers, layer=layer),
      self.layer_norm_eps, self.dtype, name="vision_model")(pixels.astype(self.dtype))
    # All tokens are projected; transformers projects the first alone.
    return nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection")(tokens)
