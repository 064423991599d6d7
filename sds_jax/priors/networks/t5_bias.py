"""Positions in T5 (arXiv:1910.10683, section 2.1): a learned bias on the scores by distance, shared by all blocks."""
from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from sds_jax.types import Array


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
  """Returns the bucket of each pair of positions: [length, length] int32, row = query, column = key.

  Keys behind the query use the first half of the buckets, keys ahead the second. In each half, distances up to a
  quarter of `buckets` have a bucket each; larger distances share buckets that widen geometrically up to `max_distance`,
  and the last bucket holds all distances beyond. The host computes them, since a logarithm with another last digit, as
  accelerators have it, would move a distance to another bucket.
  """
  half, exact = buckets // 2, buckets // 4
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]
  distance = np.abs(offset)
  # The floor is for distance 0, which has a bucket of its own below.
  octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
  far = exact + (octaves / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
  near_or_far = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return (np.where(offset > 0, half, 0) + near_or_far).astype(np.int32)


def attention_bias(table: Array, length: int, max_distance: int, mask: Array | None = None) -> Array:
  """Returns the bias on the scores of every block: by distance, and hugely negative for padding.

  Args:
    table: [buckets, heads], parameters.
    length: T, number of positions.
    max_distance: see `position_buckets`.
    mask: [B, T], nonzero where there is text; None: everywhere.

  Returns:
    [1, heads, T, T] float32, or [B, heads, T, T] with a mask.
  """
  by_pair = table.astype(jnp.float32)[position_buckets(length, table.shape[0], max_distance)]
  bias = by_pair.transpose(2, 0, 1)[None]
  # The smallest finite number: -inf would make NaN of a row that is all padding.
  return bias if mask is None else jnp.where(mask.astype(bool)[:, None, None], bias, jnp.finfo(jnp.float32).min)
