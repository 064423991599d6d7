"""Perp-Neg (arXiv:2304.04968): negative prompts without effect on the positive prompt.

A negative prompt overlapping with the positive prompt ("front view" against "side view" of the same object) would also
push away from the object. Perp-Neg uses only the part of its direction perpendicular to the positive direction:

  eps_hat = eps_u + s [d + sum_i w_i (d_i - <d_i, d> / |d|^2 d)],   d = eps_c - eps_u,  d_i = eps_i - eps_u,  w_i <= 0

`steer` computes eps_u + [...], a replacement for eps_c in both conventions of classifier-free guidance. The texts and
the weights of a view are in `views.perp_neg_weights`.
"""
from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array


def perpendicular(x: Array, y: Array) -> Array:
  """Computes the component of each x[b] perpendicular to y[b].

  The result is [B, ...] like x, computed in float32.

  For |y|^2 < 1e-6 the direction is undefined, and little or nothing is subtracted from x.

  >>> print(perpendicular(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]])))
  [[0. 4.]]
  """
  # In bfloat16 the sums over an example would lose the small perpendicular component.
  axes = tuple(range(1, x.ndim))
  wide, along = x.astype(jnp.float32), y.astype(jnp.float32)
  # Without the floor a zero direction would divide 0 by 0.
  share = jnp.sum(wide * along, axes) / jnp.maximum(jnp.sum(along * along, axes), 1e-6)
  return (wide - per_example(share, wide) * along).astype(x.dtype)


def steer(eps_c: Array, eps_u: Array, eps_n: Sequence[Array], weights: Array) -> Array:
  """Computes the replacement of eps_c with negative prompts.

  Args:
    eps_c: [B, ...], prediction under the positive prompt.
    eps_u: [B, ...], prediction without a prompt.
    eps_n: K of [B, ...], predictions under the negative prompts.
    weights: [B, K]; negative weights push away, 0 removes a prompt.

  Returns:
    [B, ...]; eps_c itself if all weights are 0.

  >>> c, u, n = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)), jnp.array([[5.0, 2.0]])
  >>> print(steer(c, u, [n], jnp.array([[-0.5]])))  # only the perpendicular part has an effect
  [[ 1. -1.]]
  """
  steered = eps_c
  for i, eps in enumerate(eps_n):
    # Directions are relative to eps_u, as in the equation above.
    steered += per_example(weights[:, i], eps_c) * perpendicular(eps - eps_u, eps_c - eps_u)
  return steered
