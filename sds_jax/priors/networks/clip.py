"""The text encoders of CLIP (arXiv:2103.00020), with the config keys and parameter names of transformers."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.attention import to_heads
from sds_jax.priors.networks.config_check import (MAX_LAYERS, MAX_TOKENS, MAX_WIDTH, MAX_SIDE, ValueRule, check_choice,
                                                  check_values, number, optional, unknown_option, whole)
from sds_jax.priors.networks.dot_product import dot_product_attention
from sds_jax.priors.networks.layers import ACTIVATIONS, LayerNorm
from sds_jax.types import Array

_NO_EFFECT = frozenset({
  "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dropout", "dtype", "eos_token_id",
  "id2label", "initializer_factor", "initializer_range", "is_encoder_decoder", "label2id", "model_type",
  "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "projection_dim", "return_dict",
  "tie_word_embeddings", "torch_dtype", "transformers_version",
})
"""Keys of a config.json without effect on the hidden states."""

_ACTS = ("quick_gelu", "gelu")
_WIDTH = whole(1, MAX_WIDTH)
_LEGAL: dict[str, ValueRule] = {
  "vocab_size": whole(1, MAX_TOKENS), "hidden_size": _WIDTH, "intermediate_size": whole(1, 2**20),
  "num_hidden_layers": whole(1, MAX_LAYERS // 2), "num_attention_heads": _WIDTH, "max_position_embeddings": _WIDTH,
  "layer_norm_eps": number(0, 1), "projection_dim": optional(_WIDTH), "num_channels": _WIDTH,
  "image_size": whole(1, MAX_SIDE), "patch_size": whole(1, MAX_SIDE), "eos_token_id": whole(0, MAX_TOKENS),
}
"""{key of a text or image encoder's config.json: legal values}."""


def check_clip_config(network: str, config: Mapping[str, Any], known: set[str]) -> None:
  """Raises ValueError for the first key of a transformers config.json that is unknown or has an illegal value.

  Args:
    network: class of the network, for the message.
    config: the parsed config.json.
    known: fields of the network; further keys are legal where they have no effect.
  """
  for key, value in config.items():
    if key not in known | _NO_EFFECT and not key.startswith("_"):
      raise unknown_option(network, key, value)
  check_values(network, config, {key: legal for key, legal in _LEGAL.items() if key in known})
  check_choice(network, "hidden_act", config.get("hidden_act", "quick_gelu"), _ACTS)


class CLIPAttention(nn.Module):
  """Multi-head self-attention, causal in the text encoder: [B, T, D] -> [B, T, D]."""
  heads: int
  causal: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    q, k, v = (to_heads(x, width, self.heads, name=name, dtype=self.dtype)
               for name in ("q_proj", "k_proj", "v_proj"))
    out = dot_product_attention(q, k, v, is_causal=self.causal).reshape(x.shape)
    return nn.Dense(width, dtype=self.dtype, name="out_proj")(out)


class CLIPMLP(nn.Module):
  """Two-layer perceptron: [B, T, D] -> [B, T, D]."""
  features: int
  hidden_act: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = ACTIVATIONS[self.hidden_act](nn.Dense(self.features, dtype=self.dtype, name="fc1")(x))
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class CLIPLayer(nn.Module):
  """Pre-normed attention and perceptron, both residual: [B, T, D] -> [B, T, D]."""
  heads: int
  features: int
  hidden_act: str
  eps: float
  causal: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = partial(LayerNorm, self.eps, self.dtype)
    x = x + CLIPAttention(self.heads, self.causal, self.dtype, name="self_attn")(norm(name="layer_norm1")(x))
    return x + CLIPMLP(self.features, self.hidden_act, self.dtype, name="mlp")(norm(name="layer_norm2")(x))


class CLIPEmbeddings(nn.Module):
  """Token plus position embeddings: [B, T] integers -> [B, T, D]."""
  vocab_size: int
  positions: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, input_ids: Array) -> Array:
    tokens = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="token_embedding")(input_ids)
    places = nn.Embed(self.positions, self.width, dtype=self.dtype, name="position_embedding")
    return tokens + places(jnp.arange(input_ids.shape[1]))[None]


class CLIPEncoder(nn.Module):
  """The stack of layers: [B, T, D] -> the input and the output of every layer, [B, T, D] each."""
  layers: int
  layer: Mapping[str, Any]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> list[Array]:
    states = [x]
    # All layers are built, so that checkpoints fit whichever state is used. XLA removes unused layers as dead code.
    for i in range(self.layers):
      states.append(CLIPLayer(**self.layer, dtype=self.dtype, name=f"layers_{i}")(states[-1]))
    return states


class CLIPTextTransformer(nn.Module):
  """Embeddings, encoder and final layer norm; gives the parameters the prefix `text_model`.

  [B, T] integers -> (state before the last `skip` layers, normed state before the last `skip_normed` layers), [B, T, D]
  each.
  """
  embeddings: Mapping[str, Any]
  encoder: Mapping[str, Any]
  eps: float
  skip: int = 0
  skip_normed: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, input_ids: Array) -> tuple[Array, Array]:
    x = CLIPEmbeddings(**self.embeddings, dtype=self.dtype, name="embeddings")(input_ids)
    states = CLIPEncoder(**self.encoder, dtype=self.dtype, name="encoder")(x)
    norm = LayerNorm(epsilon=self.eps, dtype=self.dtype, name="final_layer_norm")
    return states[-1 - self.skip], norm(states[-1 - self.skip_normed])


class CLIPTextModel(nn.Module):
  """CLIP's text encoder up to the final layer norm, before pooling.

  Attributes are the keys of a transformers CLIPTextConfig, and three that no config has. `dtype` is the dtype of
  activations. `clip_skip` is the number of last layers to skip before the final norm (diffusers' option of that name).
  The text encoders in Stable Diffusion 2's folders lack the layer to be skipped, so 0 is right for them. `final_norm`
  is false for the first text encoder of Stable Diffusion XL, whose penultimate layer is used as it is.
  """
  vocab_size: int = 49408
  hidden_size: int = 512
  intermediate_size: int = 2048
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  max_position_embeddings: int = 77
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  clip_skip: int = 0
  final_norm: bool = True
  dtype: Any = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> CLIPTextModel:
    """Returns the network that a transformers config.json describes.

    Raises:
      ValueError: an option is unknown or unsupported; the message has the key, its value and what is supported.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    known = fields - {"clip_skip", "final_norm", "dtype", "parent", "name"}
    check_clip_config(cls.__name__, config, known)
    return cls(**{key: value for key, value in config.items() if key in known}, **overrides)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)

  def transformer(self, skip_normed: int) -> CLIPTextTransformer:
    """Returns the submodule of layers; for use within the methods of the network."""
    layer = dict(heads=self.num_attention_heads, features=self.intermediate_size, hidden_act=self.hidden_act,
                 eps=self.layer_norm_eps)
    embeddings = dict(vocab_size=self.vocab_size, positions=self.max_position_embeddings, width=self.hidden_size)
    return CLIPTextTransformer(embeddings, dict(layers=self.num_hidden_layers, layer=layer), self.layer_norm_eps,
                               self.clip_skip, skip_normed, self.dtype, name="text_model")

  @nn.compact
  def __call__(self, input_ids: Array) -> Array:
    """Encodes input_ids [B, T] integers, T <= max_position_embeddings, to [B, T, hidden_size].

    Raises:
      ValueError: T is too long, the heads don't divide the width, or there aren't `clip_skip` layers.
    """
    self.check_inputs(input_ids)
    state, normed = self.transformer(self.clip_skip)(input_ids)
    return normed if self.final_norm else state

  def check_inputs(self, input_ids: Array) -> None:
    """Raises ValueError as `__call__` does."""
    if input_ids.shape[1] > self.max_position_embeddings:
      raise ValueError(f"{input_ids.shape[1]} tokens, the text encoder takes at most {self.max_position_embeddings}")
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                       f"{self.num_attention_heads}")
    if not 0 <= self.clip_skip <= self.num_hidden_layers:
      raise ValueError(f"clip_skip={self.clip_skip} of {self.num_hidden_layers} layers")


class CLIPTextModelWithProjection(CLIPTextModel):
  """CLIP's text encoder with a projection of the pooled text: the second text encoder of Stable Diffusion XL.

  Attributes are those of `CLIPTextModel` and two further keys of a transformers CLIPTextConfig. The pooled text is the
  final normed state at the token `eos_token_id`, at its first place. Published configs have 2, which is not the end of
  a text; 2 stands for the largest id of the text, which is the end of every text without added tokens.
  """
  projection_dim: int = 512
  eos_token_id: int = 49407

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> CLIPTextModelWithProjection:
    """Returns the network that a transformers config.json describes, as `CLIPTextModel.from_config` does."""
    if config.get("projection_dim", cls.projection_dim) is None:
      raise ValueError(f"{cls.__name__} config: projection_dim=None is not supported; supported: the width of the "
                       "pooled text")
    return super().from_config(config, **overrides)

  @nn.compact
  def __call__(self, input_ids: Array) -> tuple[Array, Array]:
    """Encodes input_ids [B, T] integers, T <= max_position_embeddings.

    Returns:
      (state before the last `clip_skip` layers, without norm [B, T, hidden_size]; pooled text [B, projection_dim]).

    Raises:
      ValueError: as `CLIPTextModel`.
    """
    self.check_inputs(input_ids)
    state, normed = self.transformer(0)(input_ids)
    end = jnp.argmax(input_ids if self.eos_token_id == 2 else input_ids == self.eos_token_id, axis=-1)
    pooled = jnp.take_along_axis(normed, end[:, None, None], axis=1)[:, 0]
    return state, nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)
