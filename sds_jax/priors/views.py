"""The small networks of a pose-conditioned prior, beside its U-Net and its image encoder."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sds_jax.types import Array


class CCProjection(nn.Module):
  """Zero-1-to-3's layer from a picture's tokens and the pose to what is attended to: [..., in] -> [..., out].

  Both widths are keys of its config.json.
  """
  in_features: int
  out_features: int
  dtype: Any = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> CCProjection:
    """The layer that a config.json describes.

    Raises:
      ValueError: a width is missing or no positive integer.
    """
    return cls(*(_width(config, key, "CCProjection") for key in ("in_features", "out_features")), **overrides)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.Dense(self.out_features, dtype=self.dtype, name="projection")(x)


class ElevationHead(nn.Dense):
  """From a picture's first token to the elevation that it was taken from, radians: [..., in] -> [..., 1]."""
  features: int = 1
  in_features: int = 0

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> ElevationHead:
    """The layer that a config.json describes, by its `in_features`.

    Raises:
      ValueError: it is missing or no positive integer.
    """
    return cls(in_features=_width(config, "in_features", "ElevationHead"), **overrides)


def _width(config: Mapping[str, Any], key: str, name: str) -> int:
  value = config.get(key)
  if type(value) is not int or value < 1:
    raise ValueError(f"{name} config: {key}={value!r} should be a positive integer")
  return value


def with_pose(tokens: Array, pose: Array) -> Array:
  """Each token beside the pose: [B, T, D], [B, P] -> [B, T, D + P]."""
  beside = jnp.broadcast_to(pose[:, None].astype(tokens.dtype), (*tokens.shape[:2], pose.shape[-1]))
  return jnp.concatenate([tokens, beside], axis=-1)
