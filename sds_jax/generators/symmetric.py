"""Images that equal their mirror image (arXiv:2209.14988, Figure 2).

An image is x = (theta, flip(theta)), side by side.
"""
from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from sds_jax.generators.parameterization import Parameterization
from sds_jax.types import Array, Params


def mirrored(images: Array) -> Array:
  """Returns the left half of [..., H, W, 3], W even, with its mirror image on the right."""
  left = images[..., :images.shape[-2] // 2, :]
  return jnp.concatenate([left, left[..., ::-1, :]], axis=-2)


def make_symmetric(inner: Parameterization) -> Parameterization:
  """Returns a generator that mirrors the left half of another generator's images.

  The constraint holds exactly at every step. DreamFusion's example of a constraint that comes from the generator and
  not from the prior.
  """
  def apply(params: Params, key: Array) -> Array:
    return mirrored(inner.apply(params, key))

  at = None if inner.at is None else lambda params, size: mirrored(inner.at(params, size))
  show = None if inner.show is None else lambda params: mirrored(inner.show(params))
  # No camera sees a mirrored view, and the extras of `inner` would not be mirrored.
  return dataclasses.replace(inner, apply=apply, at=at, show=show, cameras=None, extras=None)
