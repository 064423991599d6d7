"""Classifier-free guidance (arXiv:2207.12598), in the two conventions that are in use, each under its own name.

The same number means different things to them: a diffusers scale s is a DreamFusion weight omega = s - 1. So a
configuration gives the convention with the number. A negative prompt takes the place of the empty one on the
unconditional side, as in diffusers; several of them, combined by Perp-Neg, stand beside it.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion import perp_neg
from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, DenoiseFn, Params


def cfg_dreamfusion(eps_c: Array, eps_u: Array, omega: Array | float) -> Array:
  """eps_c + omega (eps_c - eps_u): DreamFusion (arXiv:2209.14988, section 3), where omega = 0 is no guidance.

  Args:
    eps_c: [B, ...], prediction under the condition.
    eps_u: [B, ...], prediction without it (or under a negative prompt).
    omega: a scalar, or [B].

  >>> print(cfg_dreamfusion(jnp.array([[3.0]]), jnp.array([[1.0]]), 7.5))
  [[18.]]
  """
  return eps_c + per_example(jnp.asarray(omega), eps_c) * (eps_c - eps_u)


def cfg_diffusers(eps_c: Array, eps_u: Array, s: Array | float) -> Array:
  """eps_u + s (eps_c - eps_u): the `guidance_scale` of diffusers (arXiv:2205.11487, eq. 2); s = 1 is no guidance.

  Arguments as in `cfg_dreamfusion`; equal to it with omega = s - 1.

  >>> print(cfg_diffusers(jnp.array([[3.0]]), jnp.array([[1.0]]), 7.5))
  [[16.]]
  """
  return eps_u + per_example(jnp.asarray(s), eps_c) * (eps_c - eps_u)


CONVENTIONS = {"dreamfusion": cfg_dreamfusion, "diffusers": cfg_diffusers}
NO_GUIDANCE = {"dreamfusion": 0.0, "diffusers": 1.0}
"""Convention -> the number that stands for no guidance in it; a number's distance from it is DreamFusion's omega."""


def rescale(eps_guided: Array, eps_c: Array, phi: Array | float) -> Array:
  """Pulls the spread of a guided prediction back towards that of the conditional one (arXiv:2305.08891, section 3.4).

  Args:
    eps_guided: [B, ...], what guidance gave.
    eps_c: [B, ...], prediction under the condition.
    phi: a scalar or [B]; 0 changes nothing, 1 gives each example the standard deviation of eps_c. The paper uses 0.7.

  Returns:
    [B, ...]. The spread is the standard deviation over all of an example, its mean taken off (eq. 15-16). The paper
    rescales what its network puts out (v) and diffusers too; here it is the noise prediction for every network, which
    is diffusers' `guidance_rescale` for networks that predict noise.

  >>> print(rescale(jnp.array([[4.0, -4.0]]), jnp.array([[1.0, -1.0]]), 1.0))
  [[ 1. -1.]]
  """
  axes = tuple(range(1, eps_c.ndim))
  ratio = eps_c.std(axes, keepdims=True) / jnp.maximum(eps_guided.std(axes, keepdims=True), 1e-8)
  phi = per_example(jnp.asarray(phi), eps_c)
  return eps_guided * (phi * ratio + (1 - phi))


@dataclasses.dataclass(frozen=True)
class Guided:
  """A guided denoiser made of a plain one, itself a `DenoiseFn`; `guided` makes and documents it.

  Attributes:
    denoise_fn: the plain one.
    convention, scale, rescale_phi: as `guided` takes them.

  Example: being data, it can be had again with another scale, as `paths.sdi` does.
    >>> strong, sides = Guided(None, "diffusers", 7.5), dict(cond=jnp.ones((1, 2)), uncond=jnp.zeros((1, 2)))
    >>> print(strong.combine(sides), dataclasses.replace(strong, scale=1.0).combine(sides))
    [[7.5 7.5]] [[1. 1.]]
  """
  denoise_fn: DenoiseFn
  convention: str
  scale: Array | float
  rescale_phi: Array | float = 0.0

  def __call__(self, params: Params, z: Array, t: Array, cond: dict) -> Array:
    """eps_hat [B, ...] of z [B, ...] at t [B]; every side of cond but `negative` is asked, in one call."""
    return self.combine(predictions(self.denoise_fn, params, z, t, {k: v for k, v in cond.items() if k != "negative"}))

  def combine(self, eps: dict[str, Array]) -> Array:
    """The guided prediction [B, ...] out of what `predictions` gives."""
    out = CONVENTIONS[self.convention](eps["cond"], eps["uncond"], self.scale)
    off = isinstance(self.rescale_phi, (int, float)) and self.rescale_phi == 0
    return out if off else rescale(out, eps["unsteered"], self.rescale_phi)


def guided(denoise_fn: DenoiseFn, convention: str, scale: Array | float, *,
           rescale_phi: Array | float = 0.0) -> Guided:
  """A guided denoiser made of a plain one, at one network call a step.

  Args:
    denoise_fn: the network, called once with a batch of 2 B, or (2 + K) B with K negative prompts.
    convention: a name in `CONVENTIONS`.
    scale: that convention's number, a scalar or [B]; may be traced (say, annealed over the run).
    rescale_phi: the `phi` of `rescale`; the Python number 0 leaves it out.

  Returns:
    A DenoiseFn whose cond is dict(cond=..., uncond=...): two pytrees of one structure, leaves [B, ...] of equal shapes.
    With Perp-Neg it also has `negatives`, a tuple of K more of them, and `weights` [B, K]: `perp_neg.steer` then goes
    before the convention, while `rescale` still looks at the plain conditional prediction. It may have `negative`, one
    more of them, which guidance itself leaves alone: the estimators CSD and NFSD ask for it.

  Raises:
    ValueError: unknown convention; or, when called, cond is not such a dictionary.

  Example: a network that sees its condition, nothing else.
    >>> denoise = guided(lambda params, z, t, cond: cond["mean"], "diffusers", 7.5)
    >>> cond = dict(cond=dict(mean=jnp.ones((1, 2))), uncond=dict(mean=jnp.zeros((1, 2))))
    >>> print(denoise(None, jnp.zeros((1, 2)), jnp.array([3]), cond))
    [[7.5 7.5]]
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"guidance convention {convention!r} is not known; legal: {', '.join(CONVENTIONS)}")
  return Guided(denoise_fn, convention, scale, rescale_phi)


def predictions(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: dict) -> dict[str, Array]:
  """What a plain network says under every side of `cond`, in one call.

  Args:
    denoise_fn, params: the plain network.
    z: [B, ...]; t: [B] integer.
    cond: as a guided denoiser takes it.

  Returns:
    [B, ...] each: `cond`, steered by Perp-Neg where there are `negatives`; `unsteered`, the same without; `uncond`; and
    `negative`, where cond has it.

  Raises:
    ValueError: cond is not such a dictionary.

  >>> denoise = lambda params, z, t, cond: cond
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> found = predictions(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero))
  >>> print({name: float(eps[0, 0]) for name, eps in found.items()})
  {'unsteered': 1.0, 'uncond': 0.0, 'cond': 1.0}
  """
  sides = _sides(cond)
  batch = jax.tree.map(_interleave, *((z, t, side) for side in sides))
  together = denoise_fn(params, *batch)
  eps_c, eps_u, *others = (together[i::len(sides)] for i in range(len(sides)))
  found = dict(unsteered=eps_c, uncond=eps_u)
  if "negative" in cond:
    found["negative"] = others.pop()
  found["cond"] = perp_neg.steer(eps_c, eps_u, others, cond["weights"]) if others else eps_c
  return found


def conditional(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any) -> Array:
  """eps_c [B, ...], without guidance; of a denoiser that is not guided, all that it says.

  >>> denoise = guided(lambda params, z, t, cond: cond, 'diffusers', 7.5)
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> print(conditional(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero)))
  [[1.]]
  """
  if isinstance(denoise_fn, Guided):
    return denoise_fn.denoise_fn(params, z, t, cond["cond"])
  return denoise_fn(params, z, t, cond)


def unconditional(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any) -> Array:
  """eps_u [B, ...]; of a denoiser that is not guided, all that it says.

  >>> denoise = guided(lambda params, z, t, cond: cond, 'diffusers', 7.5)
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> print(unconditional(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero)))
  [[0.]]
  """
  if isinstance(denoise_fn, Guided):
    return denoise_fn.denoise_fn(params, z, t, cond["uncond"])
  return denoise_fn(params, z, t, cond)


def _interleave(*sides: Array) -> Array:
  """[a_0, b_0, a_1, b_1, ...]: unlike a's then b's, a batch that is sharded over devices stays where it is."""
  return jnp.stack(sides, axis=1).reshape((-1,) + sides[0].shape[1:])


_SIDES = {"cond", "uncond"}


def _sides(cond: dict) -> list:
  """What the network is asked under: [positive, unconditional, negatives of Perp-Neg ..., perhaps a negative]."""
  keys = set(cond) - {"negative"} if isinstance(cond, dict) else None
  if keys not in (_SIDES, _SIDES | {"negatives", "weights"}):
    found = sorted(cond) if isinstance(cond, dict) else type(cond).__name__
    raise ValueError("a guided denoiser takes cond=dict(cond=..., uncond=...), with negatives and weights for "
                     f"Perp-Neg, and negative for estimators that ask for it; found {found}")
  sides = [cond["cond"], cond["uncond"], *cond.get("negatives", ())]
  steering = len(sides) - 2
  sides += [cond["negative"]] if "negative" in cond else []
  shapes = [jax.tree.map(jnp.shape, side) for side in sides]
  for other in shapes[1:]:
    if other != shapes[0]:
      raise ValueError(f"all sides of cond must have the same structure and shapes; found {shapes[0]} and {other}")
  if steering != (cond["weights"].shape[1] if "weights" in cond else 0):
    raise ValueError(f"there are {steering} negatives, but weights of shape {cond['weights'].shape}")
  return sides
