"""Predictions for an image and for its source, which share time and noise."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.types import Array, DenoiseFn, Params


def predict_both(denoise_fn: DenoiseFn, params: Params, z: Array, z_source: Array, t: Array, cond: Any,
                 source_cond: Any) -> tuple[Array, Array]:
  """Returns eps_hat of the image and of its source, [B, ...] each, in x's dtype.

  Both come from one call, since a second copy of a network takes long to compile.

  Args:
    denoise_fn, params: the network.
    z, z_source: [B, ...], noisy image and noisy source.
    t: [B] integer times.
    cond, source_cond: their conditions, of one structure and equal shapes.

  >>> one, t = jnp.ones((1, 2)), jnp.array([3])
  >>> print(*predict_both(lambda params, z, t, cond: z + cond, None, one, 2 * one, t, one, 0 * one))
  [[2. 2.]] [[2. 2.]]
  """
  pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), (z, cond), (z_source, source_cond))
  both = jax.vmap(lambda z, cond: denoise_fn(params, z, t, cond))(*pair)
  return both[0].astype(z.dtype), both[1].astype(z.dtype)
