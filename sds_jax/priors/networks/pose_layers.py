"""The small networks of a pose-conditioned prior, beside its U-Net and its image encoder."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.priors.networks.config_check import (MAX_WIDTH, TEXT, check_values, optional, shown, unknown_option,
                                                  whole)
from sds_jax.types import Array

_WIDTH = whole(1, MAX_WIDTH)

_WIDTHS = {"CLIPCameraProjection": dict(embedding_dim=768, additional_embeddings=4),
           "CCProjection": dict(in_channel=772, out_channel=768)}
"""Class in a published config.json -> its arguments with their defaults."""
_OWN_WIDTHS = dict(in_features=None, out_features=None)


class CCProjection(nn.Module):
  """Zero-1-to-3's projection of a photo's tokens and the pose to cross-attention tokens: [..., in] -> [..., out]."""
  in_features: int
  out_features: int
  dtype: Any = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> CCProjection:
    """Returns the layer that a config.json describes, by `in_features` and `out_features` or by published keys.

    Configs of class `CLIPCameraProjection` have `embedding_dim`, the width of a token before and after, and
    `additional_embeddings`, the width of the pose. Configs of class `CCProjection` have `in_channel` and `out_channel`,
    or neither: diffusers does not write arguments that the class did not register, so the class's defaults apply.

    Raises:
      ValueError: a width is missing or no positive integer, or a key is unknown.
    """
    kind = config.get("_class_name")
    check_values("CCProjection", config, {"_class_name": optional(TEXT)})
    # diffusers leaves out arguments that the class did not register, so each class has its own defaults.
    keys = _WIDTHS.get(kind, _OWN_WIDTHS)
    for key, value in config.items():
      if key not in keys and not key.startswith("_"):
        raise ValueError(f"{unknown_option('CCProjection', key, value)}; known: {', '.join(keys)}")
    first, second = (_width({**keys, **config}, key, "CCProjection") for key in keys)
    return cls(*((first + second, first) if kind == "CLIPCameraProjection" else (first, second)), **overrides)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, self.in_features), jnp.float32),)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.Dense(self.out_features, dtype=self.dtype, name="projection")(x)


class ElevationHead(nn.Dense):
  """Estimates the camera's elevation (radians) from a photo's first token: [..., in] -> [..., 1]."""
  features: int = 1
  in_features: int = 0

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> ElevationHead:
    """Returns the layer that a config.json describes, by its `in_features`.

    Raises:
      ValueError: in_features is missing or no positive integer.
    """
    return cls(in_features=_width(config, "in_features", "ElevationHead"), **overrides)

  def example_inputs(self) -> tuple[Any, ...]:
    """Returns inputs of the smallest legal shapes, for tracing the parameters."""
    return (jax.ShapeDtypeStruct((1, self.in_features), jnp.float32),)


def _width(config: Mapping[str, Any], key: str, name: str) -> int:
  value = config.get(key)
  if not _WIDTH.test(value):
    raise ValueError(f"{name} config: {key}={shown(value)} should be a positive integer, at most {MAX_WIDTH}")
  return value


def with_pose(tokens: Array, pose: Array) -> Array:
  """Appends the pose to each token: [B, T, D], [B, P] -> [B, T, D + P]."""
  beside = jnp.broadcast_to(pose[:, None].astype(tokens.dtype), (*tokens.shape[:2], pose.shape[-1]))
  return jnp.concatenate([tokens, beside], axis=-1)
