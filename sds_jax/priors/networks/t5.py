"""The encoder of T5 and T5 v1.1 (arXiv:1910.10683, arXiv:2002.05202), with transformers' config keys and names.

DeepFloyd IF encodes its captions with T5 v1.1 XXL. Unlike in the transformer of CLIP, norms have neither mean nor bias,
scores are not scaled, and positions enter through one table of biases by distance that all blocks share.

With 16-bit activations the residual stream stays float32, and the products added to the stream (`o`, `wo`) accumulate
16-bit inputs in float32: the stream of the large T5s exceeds float16's range and needs more digits than bfloat16 has.
(transformers keeps the weights of `wo` in float32 for the same reason when it loads float16.)
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.attention import to_heads
from sds_jax.priors.networks.config_check import (MAX_LAYERS, MAX_TOKENS, MAX_WIDTH, ValueRule, check_choice,
                                                  check_values, number, shown, unknown_option, whole)
from sds_jax.priors.networks.dot_product import dot_product_attention
from sds_jax.priors.networks.t5_bias import attention_bias
from sds_jax.types import Array

_NO_EFFECT = frozenset({
  "architectures", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "decoder_start_token_id",
  "dropout_rate", "dtype", "eos_token_id", "id2label", "initializer_factor", "is_encoder_decoder", "label2id",
  "n_positions", "num_decoder_layers", "output_attentions", "output_hidden_states", "output_past", "pad_token_id",
  "problem_type", "return_dict", "scale_decoder_outputs", "task_specific_params", "tie_word_embeddings",
  "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
})
"""Keys of a config.json without effect on the encoder's last hidden state."""

_FIXED = {
  "relu": dict(model_type="t5", is_decoder=False, dense_act_fn="relu", is_gated_act=False),
  "gated-gelu": dict(model_type="t5", is_decoder=False, dense_act_fn="gelu_new", is_gated_act=True),
}
"""{feed_forward_proj: {key: the only legal value, where the key is present}}."""
_WIDTH = whole(1, MAX_WIDTH)
_LEGAL: dict[str, ValueRule] = {
  "vocab_size": whole(1, MAX_TOKENS), "d_model": _WIDTH, "d_kv": _WIDTH, "d_ff": whole(1, 2**20),
  "num_layers": whole(1, MAX_LAYERS // 2), "num_heads": _WIDTH, "relative_attention_num_buckets": whole(4, 4096),
  "relative_attention_max_distance": _WIDTH, "layer_norm_epsilon": number(0, 1),
}
"""{field of the network: legal values}."""


class RMSNorm(nn.Module):
  """RMS norm x / sqrt(mean x^2 + epsilon) * scale over the last axis, in float32 (arXiv:1910.07467)."""
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
    return (x * scale[None, None]).astype(self.dtype)


def _to_stream(x: Array, width: int, *, name: str, dtype: Any) -> Array:
  """Applies the linear layer `name` of the calling module: [B, T, D] of dtype -> [B, T, width] float32."""
  # The residual stream is float32 throughout, so results of bfloat16 products are not rounded before the sum.
  dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
  return nn.Dense(width, use_bias=False, dtype=dtype, dot_general=dot, name=name)(x)


class T5Attention(nn.Module):
  """Multi-head self-attention with a bias: (x [B, T, D], bias [1 or B, heads, T, T]) -> [B, T, D] float32."""
  heads: int
  d_kv: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> Array:
    project = partial(to_heads, x, self.heads * self.d_kv, self.heads, dtype=self.dtype, use_bias=False)
    # T5 has no factor 1 / sqrt(D) on its scores.
    out = dot_product_attention(*(project(name=name) for name in "qkv"), bias=bias, scale=1.)
    return _to_stream(out.reshape(*x.shape[:-1], -1), x.shape[-1], name="o", dtype=self.dtype)


class T5FeedForward(nn.Module):
  """Perceptron, gated or not: [B, T, D] -> [B, T, D] float32."""
  d_ff: int
  proj: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inner = partial(nn.Dense, self.d_ff, use_bias=False, dtype=self.dtype)
    if self.proj == "relu":
      h = jax.nn.relu(inner(name="wi")(x))
    else:
      # approximate=True is transformers' gelu_new.
      h = jax.nn.gelu(inner(name="wi_0")(x), approximate=True) * inner(name="wi_1")(x)
    return _to_stream(h, x.shape[-1], name="wo", dtype=self.dtype)


class PreNorm(nn.Module):
  """Residual x + module(norm(x), *rest), x [B, T, D] float32; `make` returns the module, `inner` is its name."""
  make: Callable[..., nn.Module]
  inner: str
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *rest: Array) -> Array:
    h = RMSNorm(self.epsilon, self.dtype, name="layer_norm")(x)
    return x + self.make(dtype=self.dtype, name=self.inner)(h, *rest)


class T5Block(nn.Module):
  """Attention and perceptron, pre-normed and residual: (x [B, T, D] float32, bias [1 or B, heads, T, T]) -> like x."""
  heads: int
  d_kv: int
  d_ff: int
  proj: str
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> Array:
    attention = partial(T5Attention, self.heads, self.d_kv)
    feed_forward = partial(T5FeedForward, self.d_ff, self.proj)
    x = PreNorm(attention, "SelfAttention", self.epsilon, self.dtype, name="layer_0")(x, bias)
    return PreNorm(feed_forward, "DenseReluDense", self.epsilon, self.dtype, name="layer_1")(x)


class T5Stack(nn.Module):
  """The blocks and the last norm: (x [B, T, D] float32, mask [B, T] or None) -> [B, T, D] of dtype."""
  layers: int
  block: Mapping[str, Any]
  buckets: int
  max_distance: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Array:
    table = nn.Embed(self.buckets, self.block["heads"], name="relative_attention_bias").embedding
    # One table, in the first block of the checkpoint, serves all blocks.
    bias = attention_bias(table, x.shape[1], self.max_distance, mask)
    for i in range(self.layers):
      x = T5Block(**self.block, dtype=self.dtype, name=f"block_{i}")(x, bias)
    return RMSNorm(self.block["epsilon"], self.dtype, name="final_layer_norm")(x)


class T5EncoderModel(nn.Module):
  """T5's encoder.

  Attributes are the keys of a transformers T5Config, with its defaults; `dtype` is the dtype of activations.
  """
  vocab_size: int = 32128
  d_model: int = 512
  d_kv: int = 64
  d_ff: int = 2048
  num_layers: int = 6
  num_heads: int = 8
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  feed_forward_proj: str = "relu"
  layer_norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> T5EncoderModel:
    """Returns the encoder that a transformers config.json describes; keys of the decoder have no effect.

    Raises:
      ValueError: an option is unknown or unsupported; the message has the key, its value and what is supported.
    """
    known = {field.name for field in dataclasses.fields(cls)} - {"dtype", "parent", "name"}
    check_values("T5EncoderModel", config, _LEGAL)
    check_choice("T5EncoderModel", "feed_forward_proj", config.get("feed_forward_proj", "relu"), tuple(_FIXED))
    model = cls(**{key: value for key, value in config.items() if key in known}, **overrides)
    fixed = _FIXED[model.feed_forward_proj]
    for key, value in config.items():
      if key not in known | _NO_EFFECT | set(fixed) and not key.startswith("_"):
        raise unknown_option("T5EncoderModel", key, value)
      if key in fixed and value != fixed[key]:
        raise _unsupported(key, value, f"{fixed[key]!r} (feed_forward_proj is {model.feed_forward_proj!r})")
    buckets = model.relative_attention_num_buckets
    if buckets < 4 or buckets % 2:
      raise _unsupported("relative_attention_num_buckets", buckets, "even numbers from 4")
    # At or below a quarter of the buckets the logarithm of the far distances is 0 or negative.
    if (distance := model.relative_attention_max_distance) <= buckets // 4:
      raise _unsupported("relative_attention_max_distance", distance, f"numbers above {buckets // 4}")
    return model

  def block_options(self) -> dict[str, Any]:
    """Returns the arguments of each T5Block, without dtype."""
    return dict(heads=self.num_heads, d_kv=self.d_kv, d_ff=self.d_ff, proj=self.feed_forward_proj,
                epsilon=self.layer_norm_epsilon)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)

  @nn.compact
  def __call__(self, input_ids: Array, attention_mask: Array | None = None) -> Array:
    """Encodes input_ids [B, T] integers, any T, to the last hidden state [B, T, d_model].

    Args:
      input_ids: token numbers.
      attention_mask: [B, T], nonzero where there is text (None: everywhere). No token attends to padding; the padding
        tokens' own states are part of the result.

    Raises:
      ValueError: the mask and the ids differ in shape.
    """
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
      raise ValueError(f"attention_mask has shape {attention_mask.shape}, input_ids {input_ids.shape}")
    # The residual stream is float32 from here to the last norm.
    x = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, name="shared")(input_ids).astype(jnp.float32)
    return T5Stack(self.num_layers, self.block_options(), self.relative_attention_num_buckets,
                   self.relative_attention_max_distance, self.dtype, name="encoder")(x, attention_mask)


def _unsupported(key: str, value: Any, supported: str) -> ValueError:
  return ValueError(f"T5EncoderModel config: {key}={shown(value)} is not supported; supported: {supported}")
