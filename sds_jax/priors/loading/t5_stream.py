"""Runs T5's encoder one block at a time, for encoders that exceed the device's memory.

T5 v1.1 XXL's encoder has 4.8 billion parameters, and a text-to-3D run needs the encoder once, for a few prompts. The
device holds the parameters of one block (0.39 GB in bfloat16), or of the token embedding, at a time. All blocks have
the same shapes, so one compiled function serves all of them.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.loading.checkpoint import load, open_component
from sds_jax.priors.networks.t5 import RMSNorm, T5Block, T5EncoderModel
from sds_jax.priors.networks.t5_bias import attention_bias
from sds_jax.types import Array, Params

ReadPart = Callable[..., Params]
"""(*path: names from the root of the parameter tree) -> the parameters below it."""


def open_parts(folder: str | os.PathLike, dtype: Any = jnp.bfloat16,
               variant: str = "") -> tuple[T5EncoderModel, ReadPart]:
  """Returns the encoder in a transformers folder, and a function that reads a part of its parameters at each call.

  Args:
    folder: see `checkpoint.read_component`; all names and shapes are compared now, from the files' headers.
    dtype: of the parameters (host arrays) and of the network's activations.
    variant: of the weight files, see `checkpoint.weight_files`.

  Raises:
    CheckpointError: as `checkpoint.read_component`.
  """
  model, places = open_component(folder, "t5", dtype, variant)

  def read(*path: str) -> Params:
    return load({place[len(path):]: stored for place, stored in places.items() if place[:len(path)] == path}, dtype)

  return model, read


def parts_of(params: Params) -> ReadPart:
  """Returns the function that reads parts of a parameter tree in memory."""
  def read(*path: str) -> Params:
    tree = params
    for name in path:
      tree = tree[name]
    return tree

  return read


def encode_in_layers(read: ReadPart, model: T5EncoderModel, input_ids: Array,
                     attention_mask: Array | None = None) -> Array:
  """Computes `model.apply` with the parameters of one block at a time on the device.

  Not for use under jit, since parameters are read between the blocks.

  Args:
    read: returns the parameters at ("shared",), ("encoder", "relative_attention_bias"), ("encoder", "block_<i>") for i
      from 0 to model.num_layers - 1, and ("encoder", "final_layer_norm"); each is read once, in this order.
    model: the encoder.
    input_ids, attention_mask: [B, T], as the encoder takes them.

  Returns:
    [B, T, d_model].
  """
  x = _embed(model, jax.device_put(read("shared")), input_ids)
  bias = attention_bias(jnp.asarray(read("encoder", "relative_attention_bias")["embedding"]), input_ids.shape[1],
                        model.relative_attention_max_distance, attention_mask)
  for i in range(model.num_layers):
    # JAX queues computations: without the wait, all blocks' parameters would be on the device together. A name bound to
    # the parameters would keep them alive while the next block is read.
    x = jax.block_until_ready(_block(model, jax.device_put(read("encoder", f"block_{i}")), x, bias))
  norm = RMSNorm(model.layer_norm_epsilon, model.dtype)
  return norm.apply({"params": jax.device_put(read("encoder", "final_layer_norm"))}, x)


@partial(jax.jit, static_argnums=0)
def _embed(model: T5EncoderModel, params: Params, input_ids: Array) -> Array:
  embedding = nn.Embed(model.vocab_size, model.d_model, dtype=model.dtype)
  return embedding.apply({"params": params}, input_ids).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _block(model: T5EncoderModel, params: Params, x: Array, bias: Array) -> Array:
  return T5Block(**model.block_options(), dtype=model.dtype).apply({"params": params}, x, bias)
