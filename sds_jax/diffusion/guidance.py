"""Classifier-free guidance (arXiv:2207.12598), in the two conventions that are in use, each under its own name.

The same number means different things to them: a diffusers scale s is a DreamFusion weight omega = s - 1. So a
configuration gives the convention with the number.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, DenoiseFn, Params


def cfg_dreamfusion(eps_c: Array, eps_u: Array, omega: Array | float) -> Array:
  """eps_c + omega (eps_c - eps_u): DreamFusion (arXiv:2209.14988, section 3), where omega = 0 is no guidance.

  Args:
    eps_c: [B, ...], prediction under the condition.
    eps_u: [B, ...], prediction without it (or under a negative prompt).
    omega: a scalar, or [B].
  """
  return eps_c + per_example(jnp.asarray(omega), eps_c) * (eps_c - eps_u)


def cfg_diffusers(eps_c: Array, eps_u: Array, s: Array | float) -> Array:
  """eps_u + s (eps_c - eps_u): the `guidance_scale` of diffusers (arXiv:2205.11487, eq. 2); s = 1 is no guidance.

  Arguments as in `cfg_dreamfusion`; equal to it with omega = s - 1.
  """
  return eps_u + per_example(jnp.asarray(s), eps_c) * (eps_c - eps_u)


CONVENTIONS = {"dreamfusion": cfg_dreamfusion, "diffusers": cfg_diffusers}


def rescale(eps_guided: Array, eps_c: Array, phi: Array | float) -> Array:
  """Pulls the spread of a guided prediction back towards that of the conditional one (arXiv:2305.08891, eq. 15-16).

  Args:
    eps_guided: [B, ...], what guidance gave.
    eps_c: [B, ...], prediction under the condition.
    phi: a scalar or [B]; 0 changes nothing, 1 gives each example the standard deviation of eps_c. The paper uses 0.7.

  Returns:
    [B, ...]. The paper rescales what its network puts out (v); here it is the noise prediction.
  """
  axes = tuple(range(1, eps_c.ndim))
  ratio = eps_c.std(axes, keepdims=True) / jnp.maximum(eps_guided.std(axes, keepdims=True), 1e-8)
  phi = per_example(jnp.asarray(phi), eps_c)
  return eps_guided * (phi * ratio + (1 - phi))


def guided(denoise_fn: DenoiseFn, convention: str, scale: Array | float, *,
           rescale_phi: Array | float = 0.0) -> DenoiseFn:
  """A guided denoiser made of a plain one, at one network call a step.

  Args:
    denoise_fn: the network, called once with a batch of 2 B.
    convention: a name in `CONVENTIONS`.
    scale: that convention's number, a scalar or [B]; may be traced (say, annealed over the run).
    rescale_phi: the `phi` of `rescale`; the Python number 0 leaves it out.

  Returns:
    A DenoiseFn whose cond is dict(cond=..., uncond=...): two pytrees of one structure, leaves [B, ...] of equal shapes.

  Raises:
    ValueError: unknown convention; or, when called, cond is not such a dictionary.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"guidance convention {convention!r} is not known; legal: {', '.join(CONVENTIONS)}")
  combine = CONVENTIONS[convention]

  def denoise(params: Params, z: Array, t: Array, cond: dict) -> Array:
    _check_pair(cond)
    both = denoise_fn(params, *jax.tree.map(_interleave, (z, t, cond["cond"]), (z, t, cond["uncond"])))
    eps_c, eps_u = both[0::2], both[1::2]
    eps = combine(eps_c, eps_u, scale)
    off = isinstance(rescale_phi, (int, float)) and rescale_phi == 0
    return eps if off else rescale(eps, eps_c, rescale_phi)

  return denoise


def _interleave(a: Array, b: Array) -> Array:
  """[a_0, b_0, a_1, b_1, ...]: unlike a's then b's, a batch that is sharded over devices stays where it is."""
  return jnp.stack([a, b], axis=1).reshape((-1,) + a.shape[1:])


def _check_pair(cond: dict) -> None:
  if not isinstance(cond, dict) or set(cond) != {"cond", "uncond"}:
    found = sorted(cond) if isinstance(cond, dict) else type(cond).__name__
    raise ValueError(f"a guided denoiser takes cond=dict(cond=..., uncond=...); found {found}")
  shapes = [jax.tree.map(jnp.shape, cond[side]) for side in ("cond", "uncond")]
  if shapes[0] != shapes[1]:
    raise ValueError(f"cond and uncond must have the same structure and shapes; found {shapes[0]} and {shapes[1]}")
