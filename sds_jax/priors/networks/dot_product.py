"""Scaled dot-product attention (arXiv:1706.03762, equation 1) in several equivalent implementations."""
from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.types import Array

IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn")
"""The implementations of `dot_product_attention`."""

CHUNK_BYTES = 256 * 2**20
"""Upper limit of the float32 scores in memory for "chunked"; "auto" uses chunks above the same limit."""

_SMALL_BYTES = 16 * 2**20
"""Up to this size of the scores "auto" uses XLA, since a fused kernel would save next to nothing."""


def dot_product_attention(q: Array, k: Array, v: Array, *, bias: Array | None = None, scale: float | None = None,
                          is_causal: bool = False, implementation: str = "auto") -> Array:
  """Computes softmax(scale q k^T + bias) v; all attention of this package goes through this function.

  Scores and softmax are float32 for inputs of any dtype (so `upcast_attention` of a config always holds).

  Args:
    q: [B, T, heads, D].
    k, v: [B, S, heads, D], of q's dtype.
    bias: added to the scores, [B or 1, heads or 1, T or 1, S], or None.
    scale: factor of the scores; None: 1 / sqrt(D).
    is_causal: whether position i sees positions up to i only.
    implementation: "xla" keeps all scores in memory; "chunked" computes blocks of queries one after the other (equal
      maths, `CHUNK_BYTES` of scores in memory, in the gradient too); "cudnn" is the fused kernel of CUDA GPUs; "auto"
      decides by `choose_implementation` at trace time, for the default backend and the traced shapes (under vmap, the
      shapes of one example).

  Returns:
    [B, T, heads, D].

  Raises:
    ValueError: unknown implementation, or "cudnn" where it can't run.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"attention implementation {implementation!r} is unknown; there is {', '.join(IMPLEMENTATIONS)}")
  scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
  plain = bias is None and v.shape[-1] == q.shape[-1]
  if implementation == "auto":
    implementation = choose_implementation(_platform(), q.dtype, q.shape[-1], q.shape[1], k.shape[1],
                                           q.shape[0] * q.shape[2], plain)
  if implementation == "cudnn":
    obstacle = cudnn_obstacle(_platform(), q.dtype, q.shape[-1], q.shape[1], k.shape[1], plain)
    if obstacle:
      raise ValueError(f"attention implementation 'cudnn' {obstacle}; use 'auto', 'xla' or 'chunked'")
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=is_causal, implementation="cudnn")
  if implementation == "chunked":
    return _chunked(q, k, v, bias, scale, is_causal, CHUNK_BYTES)
  return _attend(q, k, v, bias, scale, is_causal)


def choose_implementation(platform: str, dtype: Any, head_dim: int, queries: int, keys: int, batch_heads: int,
                          plain: bool = True) -> str:
  """Resolves "auto": "xla" for few scores, else "cudnn" where the kernel can run, else "chunked" for very many.

  Args:
    platform: "cuda", "rocm", "tpu", "cpu".
    dtype: of q, k and v.
    head_dim, queries, keys: D, T, S of `dot_product_attention`.
    batch_heads: B * heads.
    plain: no bias, and values as wide as keys.
  """
  # Four bytes: scores are float32 for inputs of any dtype.
  score_bytes = 4 * batch_heads * queries * keys
  if score_bytes <= _SMALL_BYTES:
    return "xla"
  if cudnn_obstacle(platform, dtype, head_dim, queries, keys, plain) is None:
    return "cudnn"
  return "chunked" if score_bytes > CHUNK_BYTES else "xla"


def cudnn_obstacle(platform: str, dtype: Any, head_dim: int, queries: int, keys: int, plain: bool = True) -> str | None:
  """Returns why the fused kernel can't run, or None. Arguments are those of `choose_implementation`.

  The rules are jax's rules for all architectures since Ampere, including the gradient (which alone forbids odd
  lengths).
  """
  if platform != "cuda":
    return f"needs a CUDA GPU since Ampere, the default backend is {platform}"
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f"takes bfloat16 or float16, not {jnp.dtype(dtype).name}"
  if head_dim % 8 or head_dim > 128:
    return f"takes head sizes that are multiples of 8 up to 128, not {head_dim}"
  if queries % 2 or keys % 2:
    return f"takes even numbers of queries and keys, not {queries} and {keys}"
  return None if plain else "takes no bias and no values of another head size"


def _platform() -> str:
  """Returns the default backend; for GPUs "cuda", "cuda before Ampere" or "rocm", as the fused kernel depends on it."""
  backend = jax.default_backend()
  if backend != "gpu":
    return backend
  # JAX calls NVIDIA's and AMD's backends both "gpu".
  device = jax.devices()[0]
  if "cuda" not in device.client.platform_version:
    return "rocm"
  # "7.5", say; Ampere began with 8.0.
  capability = str(getattr(device, "compute_capability", "8.0"))
  return "cuda before Ampere" if int(capability.split(".")[0]) < 8 else "cuda"


def _attend(q: Array, k: Array, v: Array, bias: Array | None, scale: float, is_causal: bool,
            first_query: Array | int = 0) -> Array:
  """Attends with all scores in memory; `first_query` is the position of q's first row among all queries."""
  # Not jax.nn.dot_product_attention: under strict dtype promotion its "xla" refuses bfloat16.
  scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * scale
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if is_causal:
    visible = (first_query + jnp.arange(q.shape[1]))[:, None] >= jnp.arange(k.shape[1])[None, :]
    # The smallest finite number: a row of -inf alone would have a softmax of NaN.
    scores = jnp.where(visible[None, None], scores, jnp.finfo(jnp.float32).min)
  # The softmax is float32; only its result is cast to the dtype of the values.
  return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _chunked(q: Array, k: Array, v: Array, bias: Array | None, scale: float, is_causal: bool, max_bytes: int) -> Array:
  """Attends block by block; a block has as many queries as max_bytes of scores allow, at least one."""
  b, t, heads, _ = q.shape
  # Rounded up twice, so that the blocks are of nearly equal size and the padding is small.
  blocks = -(-t // max(1, max_bytes // (4 * b * heads * k.shape[1])))
  rows = -(-t // blocks)

  def split(x: Array, axis: int) -> Array:
    """Splits [..., T, ...] into [blocks, ..., rows, ...]; zeros fill up the last block."""
    x = jnp.pad(x, [(0, blocks * rows - t if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, rows, *x.shape[axis + 1:]), axis, 0)

  bias_per_query = bias is not None and bias.shape[2] > 1

  @jax.checkpoint  # or the gradient would keep the scores of all blocks
  def attend(block: tuple[Array, Array | None, Array]) -> Array:
    q_block, bias_block, first_query = block
    return _attend(q_block, k, v, bias_block if bias_per_query else bias, scale, is_causal, first_query)

  out = jax.lax.map(attend, (split(q, 1), split(bias, 2) if bias_per_query else None, jnp.arange(blocks) * rows))
  # The padded queries of the last block are cut off.
  return jnp.moveaxis(out, 0, 1).reshape(b, blocks * rows, heads, v.shape[-1])[:, :t]
