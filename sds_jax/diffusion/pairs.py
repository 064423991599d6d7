"""Predictions for an image and for its source, which share time and noise."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion.guidance import predict
from sds_jax.types import Array, DenoiseFn, Params


def predict_both(denoise_fn: DenoiseFn, params: Params, z: Array, z_source: Array, t: Array, cond: Any,
                 source_cond: Any) -> tuple[Array, Array]:
  """Returns eps_hat of the image and of its source.

  Both are [B, ...] in x's dtype.

  Both come from one call, since a second copy of a network takes long to compile.

  Args:
    denoise_fn, params: the network.
    z, z_source: [B, ...], noisy image and noisy source.
    t: [B] integer times.
    cond, source_cond: their conditions, of one structure and equal shapes.

  Raises:
    ValueError: the shapes differ.

  >>> one, t = jnp.ones((1, 2)), jnp.array([3])
  >>> print(*predict_both(lambda params, z, t, cond: z + cond, None, one, 2 * one, t, one, 0 * one))
  [[2. 2.]] [[2. 2.]]
  """
  if z.shape != z_source.shape:
    raise ValueError(f"source_x has shape {z_source.shape}, but x has {z.shape}; legal: the shape of x")
  structures = [jax.tree.map(np.shape, side) for side in (cond, source_cond)]
  if structures[0] != structures[1]:
    raise ValueError(f"source_cond has the leaves {structures[1]}, but cond {structures[0]}; legal: one structure with "
                     "equal shapes")
  pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), (z, cond), (z_source, source_cond))
  # Under vmap the denoiser sees B examples and not 2 B, so t and a guidance scale [B] fit both.
  both = jax.vmap(lambda z, cond: predict(denoise_fn, params, z, t, cond))(*pair)
  return both[0].astype(z.dtype), both[1].astype(z.dtype)
