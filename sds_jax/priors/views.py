"""What a pose-conditioned prior is told of a picture and of the view that is asked for (Zero-1-to-3, arXiv:2303.11328).

The picture goes in twice. Its x, as the prior encodes it, stands behind z_t at the U-Net's input; its tokens, by a CLIP
image encoder, are each joined to the pose, projected to the width of the text, and attended to in its place.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from sds_jax.types import Array


class CCProjection(nn.Module):
  """Tokens and pose to what is attended to: [B, T, in_features] -> [B, T, out_features] (the name in diffusers)."""
  in_features: int
  out_features: int
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.Dense(self.out_features, dtype=self.dtype, name="projection")(x)


def with_pose(tokens: Array, pose: Array) -> Array:
  """Each token beside the pose: [B, T, D], [B, P] -> [B, T, D + P]."""
  beside = jnp.broadcast_to(pose[:, None].astype(tokens.dtype), (*tokens.shape[:2], pose.shape[-1]))
  return jnp.concatenate([tokens, beside], axis=-1)
