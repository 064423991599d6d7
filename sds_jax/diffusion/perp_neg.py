"""Perp-Neg (arXiv:2304.04968): negative prompts that cannot undo the positive one.

A negative prompt that overlaps with the positive one ("front view" against "side view" of the same object) would push
away from the object as well. So of its direction only the part perpendicular to the positive direction is used:

  eps_hat = eps_u + s [d + sum_i w_i (d_i - <d_i, d> / |d|^2 d)],   d = eps_c - eps_u,  d_i = eps_i - eps_u,  w_i <= 0

`steer` gives eps_u + [...], which takes the place of eps_c in either convention of classifier-free guidance. Which
texts and weights a view gets is in `views.perp_neg_weights`.
"""
from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array


def perpendicular(x: Array, y: Array) -> Array:
  """The component of each x[b] that is perpendicular to y[b]; [B, ...] like x, computed in float32.

  Where |y|^2 is under 1e-6 there is no direction, and little or nothing is taken from x.

  >>> print(perpendicular(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]])))
  [[0. 4.]]
  """
  axes = tuple(range(1, x.ndim))
  wide, along = x.astype(jnp.float32), y.astype(jnp.float32)
  share = jnp.sum(wide * along, axes) / jnp.maximum(jnp.sum(along * along, axes), 1e-6)
  return (wide - per_example(share, wide) * along).astype(x.dtype)


def steer(eps_c: Array, eps_u: Array, eps_n: Sequence[Array], weights: Array) -> Array:
  """What takes the place of eps_c in classifier-free guidance.

  Args:
    eps_c: [B, ...], prediction under the positive prompt.
    eps_u: [B, ...], prediction without a prompt.
    eps_n: K of [B, ...], predictions under the negative prompts.
    weights: [B, K], of which negative ones push away; 0 leaves a prompt out.

  Returns:
    [B, ...]; eps_c itself where all weights are 0.

  >>> c, u, n = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)), jnp.array([[5.0, 2.0]])
  >>> print(steer(c, u, [n], jnp.array([[-0.5]])))  # only what is across the prompt counts
  [[ 1. -1.]]
  """
  steered = eps_c
  for i, eps in enumerate(eps_n):
    steered += per_example(weights[:, i], eps_c) * perpendicular(eps - eps_u, eps_c - eps_u)
  return steered
