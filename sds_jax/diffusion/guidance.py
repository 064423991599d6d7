"""Classifier-free guidance (arXiv:2207.12598) in its two common conventions, each under its own name.

The same number has different meanings: a diffusers scale s is a DreamFusion weight omega = s - 1. A configuration
therefore gives the convention together with the number. A negative prompt replaces the empty prompt on the
unconditional side, as in diffusers; several negative prompts, combined by Perp-Neg, are kept besides the empty prompt.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sds_jax.diffusion import perp_neg
from sds_jax.diffusion.parameterizations import eps_from_x0, x0_from_eps
from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def cfg_dreamfusion(eps_c: Array, eps_u: Array, omega: ArrayLike) -> Array:
  """Computes eps_c + omega (eps_c - eps_u), as in DreamFusion.

  omega = 0 means no guidance (arXiv:2209.14988, section 3).

  Args:
    eps_c: [B, ...], prediction under the condition.
    eps_u: [B, ...], prediction without the condition (or under a negative prompt).
    omega: a scalar, or [B].

  >>> print(cfg_dreamfusion(jnp.array([[3.0]]), jnp.array([[1.0]]), 7.5))
  [[18.]]
  """
  return eps_c + _factor("omega", omega, eps_c) * (eps_c - eps_u)


def cfg_diffusers(eps_c: Array, eps_u: Array, s: ArrayLike) -> Array:
  """Computes eps_u + s (eps_c - eps_u), as in diffusers.

  s is the `guidance_scale` of diffusers and s = 1 means no guidance (arXiv:2205.11487, eq. 2). Equal to
  `cfg_dreamfusion` with omega = s - 1. Arguments as for `cfg_dreamfusion`.

  >>> print(cfg_diffusers(jnp.array([[3.0]]), jnp.array([[1.0]]), 7.5))
  [[16.]]
  """
  return eps_u + _factor("s", s, eps_c) * (eps_c - eps_u)


def _factor(name: str, value: ArrayLike, like: Array) -> Array:
  """Returns a scalar or [B] as a factor of like [B, ...]."""
  if np.shape(value) not in ((), like.shape[:1]):
    raise ValueError(f"the factor {name} of guidance has shape {np.shape(value)}, but the prediction {like.shape}; "
                     f"legal: a scalar, or shape {like.shape[:1]}")
  return per_example(jnp.asarray(value), like)


CONVENTIONS = {"dreamfusion": cfg_dreamfusion, "diffusers": cfg_diffusers}
NO_GUIDANCE = {"dreamfusion": 0.0, "diffusers": 1.0}
"""Convention -> the number without guidance; a scale minus this number is DreamFusion's omega."""


def rescale(eps_guided: Array, eps_c: Array, phi: ArrayLike, group: int = 1) -> Array:
  """Rescales a guided prediction towards the conditional standard deviation.

  arXiv:2305.08891, section 3.4.

  Args:
    eps_guided: [B, ...], result of guidance.
    eps_c: [B, ...], prediction under the condition.
    phi: a scalar or [B]; 0 changes nothing, 1 gives each example the standard deviation of eps_c. The paper uses 0.7.
    group: number of neighbouring examples that are views of one object and get one factor (MVDream,
      arXiv:2308.16512).

  Returns:
    [B, ...]. The standard deviation is taken over all elements of an example (eq. 15-16), or of a group.

  >>> print(rescale(jnp.array([[4.0, -4.0]]), jnp.array([[1.0, -1.0]]), 1.0))
  [[ 1. -1.]]
  """
  # The paper and diffusers rescale the output of the network (v in the paper). Here the noise prediction is rescaled
  # for every network, equal to diffusers' `guidance_rescale` for networks with noise as their output.
  def std(eps: Array) -> Array:
    each = eps.reshape(-1, group * eps.shape[1], *eps.shape[2:]) if group > 1 else eps
    each = each.std(tuple(range(1, each.ndim)), keepdims=True)
    return jnp.repeat(each, group, axis=0) if group > 1 else each

  # The floor of the denominator covers a constant prediction.
  ratio = std(eps_c) / jnp.maximum(std(eps_guided), 1e-8)
  phi = _factor("phi", phi, eps_c)
  return eps_guided * (phi * ratio + (1 - phi))


@dataclasses.dataclass(frozen=True, eq=False)
class Guided:
  """A guided denoiser around a plain denoiser, itself a `DenoiseFn`; the result of `guided`.

  Attributes:
    denoise_fn: the plain denoiser.
    convention, scale, rescale_phi, group, x0_schedule: arguments of `guided`.

  Guided denoisers compare by value, so that one can be a static argument of `jax.jit`, with an array as its scale, too.

  Raises:
    ValueError: in `hash` and `==`: the scale is traced.

  Example: a dataclass can be copied with another scale, as in the estimator `sdi`.
    >>> strong, sides = Guided(None, "diffusers", 7.5), dict(cond=jnp.ones((1, 2)), uncond=jnp.zeros((1, 2)))
    >>> print(strong.combine(sides), dataclasses.replace(strong, scale=1.0).combine(sides))
    [[7.5 7.5]] [[1. 1.]]
  """
  denoise_fn: DenoiseFn
  convention: str
  scale: ArrayLike
  rescale_phi: ArrayLike = 0.0
  group: int = 1
  x0_schedule: Schedule | None = None

  def __call__(self, params: Params, z: Array, t: Array, cond: dict) -> Array:
    """Predicts eps_hat [B, ...] in a single network call.

    The prediction under `negative` is not needed here and not computed.
    """
    check_sides(cond)
    asked = {k: v for k, v in cond.items() if k != "negative"}
    return self.combine(predictions(self.denoise_fn, params, z, t, asked, self.group), z, t)

  def combine(self, eps: dict[str, Array], z: Array | None = None, t: Array | None = None) -> Array:
    """Combines `predictions` into the guided prediction [B, ...].

    Args:
      eps: result of `predictions`.
      z, t: of the predictions; used where `x0_schedule` is given.
    """
    # "cond" is already steered by Perp-Neg; "unsteered" is the plain prediction.
    out = CONVENTIONS[self.convention](eps["cond"], eps["uncond"], self.scale)
    # A Python 0 leaves `rescale` out of the program; a traced phi cannot be tested here.
    off = isinstance(self.rescale_phi, (int, float)) and self.rescale_phi == 0
    if off:
      return out
    if self.x0_schedule is None:
      return rescale(out, eps["unsteered"], self.rescale_phi, self.group)
    guided_x0, plain_x0 = (x0_from_eps(self.x0_schedule, z, t, each.astype(z.dtype))
                           for each in (out, eps["unsteered"]))
    x0 = rescale(guided_x0, plain_x0, self.rescale_phi, self.group)
    return eps_from_x0(self.x0_schedule, z, t, x0).astype(out.dtype)

  def __eq__(self, other: object) -> bool:
    return self._identity() == other._identity() if isinstance(other, Guided) else NotImplemented

  def __hash__(self) -> int:
    return hash(self._identity())

  def _identity(self) -> tuple:
    schedule = None if self.x0_schedule is None else tuple(map(_value, jax.tree.leaves(self.x0_schedule)))
    return (type(self), self.denoise_fn, self.convention, _value(self.scale), _value(self.rescale_phi), self.group,
            schedule)


def _value(scale: ArrayLike) -> Any:
  """Returns a hashable value of a scale."""
  if isinstance(scale, jax.core.Tracer):
    raise ValueError(f"a guided denoiser with a traced scale ({scale}) cannot be a static argument: give `guided` the "
                     "scale within the function that jit compiles")
  if not isinstance(scale, (jax.Array, np.ndarray, np.generic)):
    return scale
  # Arrays have no hash, and compare element by element, so their bytes stand in for them.
  array = np.asarray(jax.device_get(scale))
  return array.shape, array.dtype.str, array.tobytes()


def guided(denoise_fn: DenoiseFn, convention: str, scale: ArrayLike, *, rescale_phi: ArrayLike = 0.0, group: int = 1,
           x0_schedule: Schedule | None = None) -> Guided:
  """Returns a guided denoiser around a plain denoiser.

  Each step has a single network call.

  Args:
    denoise_fn: the network, called with a batch of 2 B, or (2 + K) B with K negative prompts.
    convention: a name in `CONVENTIONS`.
    scale: in this convention, a scalar or [B]; may be traced (for example, annealed over the run).
    rescale_phi: the `phi` of `rescale`; the Python number 0 leaves `rescale` out.
    group: number of neighbouring examples that the network looks at together, as views of one object; B is a multiple.
      The network gets the groups unmixed, each under one condition.
    x0_schedule: the noise schedule, to rescale the clean image that follows from the prediction, in place of the
      prediction itself (MVDream, arXiv:2308.16512). None: the prediction.

  Returns:
    A DenoiseFn with cond = dict(cond=..., uncond=...): two pytrees of equal structure, leaves [B, ...] of equal shapes.
    With Perp-Neg cond also has `negatives`, a tuple of K further pytrees, and `weights` [B, K]: `perp_neg.steer` is
    applied before the convention, while `rescale` uses the plain conditional prediction. An optional pytree `negative`
    is ignored by guidance and used by the estimators CSD and NFSD.

  Raises:
    ValueError: unknown convention, or a scale that is no number; in a call: cond is not such a dictionary, or a shape
      does not fit.

  Example: a network returning its condition.
    >>> denoise = guided(lambda params, z, t, cond: cond["mean"], "diffusers", 7.5)
    >>> cond = dict(cond=dict(mean=jnp.ones((1, 2))), uncond=dict(mean=jnp.zeros((1, 2))))
    >>> print(denoise(None, jnp.zeros((1, 2)), jnp.array([3]), cond))
    [[7.5 7.5]]
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"guidance convention {convention!r} is not known; legal: {', '.join(CONVENTIONS)}")
  for name, value in (("scale", scale), ("rescale_phi", rescale_phi)):
    if not hasattr(value, "dtype") and not isinstance(value, (int, float)):
      raise ValueError(f"{name}={value!r} of guidance is not legal; legal: a number, or an array of shape [] or [B]")
  return Guided(denoise_fn, convention, scale, rescale_phi, group, x0_schedule)


def group_of(denoise_fn: DenoiseFn) -> int:
  """Returns the number of neighbouring examples that a denoiser looks at together; 1 for a plain denoiser.

  >>> print(group_of(guided(None, "diffusers", 7.5, group=4)), group_of(lambda params, z, t, cond: z))
  4 1
  """
  return denoise_fn.group if isinstance(denoise_fn, Guided) else 1


def one_a_group(denoise_fn: DenoiseFn, drawn: Array) -> Array:
  """Returns the first number of each group in place of the others, so that a group's times stay equal.

  Args:
    denoise_fn: of the groups, see `group_of`.
    drawn: [B].

  >>> print(one_a_group(guided(None, "diffusers", 7.5, group=2), jnp.array([1, 2, 3, 4])))
  [1 1 3 3]
  """
  group = group_of(denoise_fn)
  return jnp.repeat(drawn[::group], group) if group > 1 else drawn


def predict(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any) -> Array:
  """Calls a denoiser, and checks the shape of its prediction.

  Returns:
    eps_hat [B, ...].

  Raises:
    ValueError: the prediction is no array in the shape of z.

  >>> print(predict(lambda params, z, t, cond: 2 * z, None, jnp.ones((1, 2)), jnp.array([3]), None))
  [[2. 2.]]
  """
  eps_hat = denoise_fn(params, z, t, cond)
  shape = getattr(eps_hat, "shape", None)
  if shape is None:
    raise ValueError(f"the denoiser returned a {type(eps_hat).__name__} for z_t of shape {z.shape}; legal: an array of "
                     "that shape, the predicted noise")
  # A prediction of another shape would broadcast, to a wrong gradient.
  if shape != z.shape or not jnp.issubdtype(eps_hat.dtype, jnp.floating):
    raise ValueError(f"the denoiser returned shape {shape} and dtype {eps_hat.dtype} for z_t of shape {z.shape}; "
                     "legal: that shape and a floating dtype")
  return eps_hat


def predictions(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: dict,
                group: int = 1) -> dict[str, Array]:
  """Predicts the noise under every side of `cond`.

  A single call of a plain network.

  Args:
    denoise_fn, params: the plain network.
    z: [B, ...].
    t: [B] integer.
    cond: the condition of a guided denoiser, see `guided`.
    group: number of neighbouring examples that the network looks at together.

  Returns:
    [B, ...] each: `unsteered`, the conditional prediction; `cond`, the same steered by Perp-Neg if cond has
    `negatives`; `uncond`; and `negative`, if cond has `negative`.

  Raises:
    ValueError: cond is not such a dictionary, or B is no multiple of group.

  >>> denoise = lambda params, z, t, cond: cond
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> eps = predictions(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero))
  >>> print({name: float(value[0, 0]) for name, value in eps.items()})
  {'unsteered': 1.0, 'uncond': 0.0, 'cond': 1.0}
  """
  # A single batch: two copies of a network in a program would compile twice as long.
  sides = _sides(cond, z.shape[0])
  if z.shape[0] % group:
    raise ValueError(f"there are {z.shape[0]} examples, but the network looks at {group} views of an object together; "
                     f"legal: a multiple of {group}")
  batch = jax.tree.map(lambda *leaves: _interleave(*leaves, group=group), *((z, t, side) for side in sides))
  together = predict(denoise_fn, params, *batch)
  # Undo the interleaving: side i has the groups i, i + n, i + 2 n, ...
  grouped = together if group == 1 else together.reshape(-1, group, *z.shape[1:])
  eps_c, eps_u, *others = (grouped[i::len(sides)].reshape(z.shape) for i in range(len(sides)))
  eps = dict(unsteered=eps_c, uncond=eps_u)
  if "negative" in cond:
    eps["negative"] = others.pop()  # the last side, see `_sides`
  eps["cond"] = perp_neg.steer(eps_c, eps_u, others, jnp.asarray(cond["weights"])) if others else eps_c
  return eps


def conditional(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any) -> Array:
  """Predicts eps_c [B, ...] without guidance.

  A plain denoiser is called as is.

  >>> denoise = guided(lambda params, z, t, cond: cond, 'diffusers', 7.5)
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> print(conditional(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero)))
  [[1.]]
  """
  return _one_side(denoise_fn, params, z, t, cond, "cond")


def unconditional(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any) -> Array:
  """Predicts eps_u [B, ...].

  A plain denoiser is called as is.

  >>> denoise = guided(lambda params, z, t, cond: cond, 'diffusers', 7.5)
  >>> zero, t = jnp.zeros((1, 1)), jnp.array([0])
  >>> print(unconditional(denoise, None, zero, t, dict(cond=zero + 1, uncond=zero)))
  [[0.]]
  """
  return _one_side(denoise_fn, params, z, t, cond, "uncond")


def _one_side(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any, side: str) -> Array:
  if not isinstance(denoise_fn, Guided):
    return predict(denoise_fn, params, z, t, cond)
  check_sides(cond)
  # Only this side enters the network: half the batch of a guided call.
  return predict(denoise_fn.denoise_fn, params, z, t, cond[side])


def _interleave(*sides: Array, group: int = 1) -> Array:
  """Interleaves arrays by groups of neighbours: [a_0, b_0, a_1, b_1, ...] where a group is one example."""
  # Concatenation would move the examples of a batch sharded over devices; interleaving keeps each on its device.
  grouped = sides if group == 1 else [side.reshape(-1, group, *side.shape[1:]) for side in sides]
  return jnp.stack(grouped, axis=1).reshape((-1,) + sides[0].shape[1:])


_SIDES = {"cond", "uncond"}


def check_sides(cond: Any) -> None:
  """Raises ValueError for anything but a dictionary of `guided`.

  >>> check_sides(None)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
    ...
  ValueError: a guided denoiser takes cond=dict(cond=..., uncond=...), ...
  """
  keys = set(cond) - {"negative"} if isinstance(cond, Mapping) else None
  if keys not in (_SIDES, _SIDES | {"negatives", "weights"}):
    actual = sorted(map(str, cond)) if isinstance(cond, Mapping) else type(cond).__name__
    raise ValueError("a guided denoiser takes cond=dict(cond=..., uncond=...), with negatives and weights for "
                     f"Perp-Neg, and negative for the estimators CSD and NFSD; found {actual}")


def _sides(cond: dict, batch: int) -> list:
  """Lists the conditions of the network.

  In order: positive, unconditional, negatives of Perp-Neg, optional negative.

  Raises:
    ValueError: cond is not a dictionary of `guided`.
  """
  check_sides(cond)
  sides = [cond["cond"], cond["uncond"], *cond.get("negatives", ())]
  # `negative` is not steered and comes last, so that `predictions` can pop the last side.
  steering = len(sides) - 2
  sides += [cond["negative"]] if "negative" in cond else []
  shapes = [jax.tree.map(np.shape, side) for side in sides]
  # The sides become a single batch, so their leaves must agree.
  for other in shapes[1:]:
    if other != shapes[0]:
      raise ValueError(f"all sides of cond need the same structure and shapes; found {shapes[0]} and {other}")
  for leaf in jax.tree.leaves(cond["cond"]):
    if np.shape(leaf)[:1] != (batch,):
      raise ValueError(f"a leaf of cond['cond'] has shape {np.shape(leaf)}, but there are {batch} examples; legal: "
                       f"({batch}, ...) for every leaf, as of jnp.repeat for a condition that they share")
  if "weights" in cond and np.shape(cond["weights"]) != (batch, steering):
    raise ValueError(f"cond has {steering} negatives, but weights of shape {np.shape(cond['weights'])}; "
                     f"legal: ({batch}, {steering})")
  return sides
