"""Estimators that mix noise predictions at one z_t: each is a row of coefficients.

  residual = a eps_guided + b eps_c + c eps_u + d eps_n + e eps

eps_c, eps_u, eps_n are the network's predictions under the prompt, nothing, and a negative prompt; eps_guided what
`guidance` makes of the first two; eps the noise that was added. SDS, and what was later made of it, differ in a row.

  >>> print(sds(0.5), csd(0.5, negative_weight=0.25))
  {'guided': 1.0, 'eps': -1.0} {'cond': 1.0, 'uncond': -0.75, 'negative': -0.25}
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.guidance import Guided, predictions
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule

Row = dict[str, Array | float]
"""What is summed -> its coefficient, a scalar or [B]: guided, cond, uncond, negative, eps. Absent: 0, and not asked."""


def sds(time: Array) -> Row:
  """Score distillation sampling: eps_guided - eps (DreamFusion, arXiv:2209.14988, eq. 3).

  Subtracting eps changes no expectation. It lowers the variance where sigma^2 > alpha^2 c^2, c^2 the variance of the
  data along a direction; below that noise level it raises it. The guided part is the prior's word on the image plus
  omega times that of a classifier: eps_guided - eps = (eps_c - eps) + omega (eps_c - eps_u).

  Args:
    time: [B], fraction of the schedule in [0, 1); not used, as in all rows but `nfsd`.

  >>> print(sds(0.5))
  {'guided': 1.0, 'eps': -1.0}
  """
  return dict(guided=1.0, eps=-1.0)


def score(time: Array) -> Row:
  """SDS without its control variate: eps_guided alone, the same in expectation (arXiv:2209.14988, appendix A.4).

  >>> print(score(0.5))
  {'guided': 1.0}
  """
  return dict(guided=1.0)


def csd(time: Array, *, negative_weight: Array | float = 0.0) -> Row:
  """Classifier score distillation: (eps_c - eps_u) - w2 (eps_n - eps_u), without the prior's word (arXiv:2310.19415).

  Args:
    time: as in `sds`.
    negative_weight: w2, a scalar, perhaps traced; the Python number 0 leaves the negative prompt out.

  Returns:
    The row. Guidance scale plays no part: w(t) and the learning rate have its place.

  >>> print(csd(0.5), csd(0.5, negative_weight=1.0))
  {'cond': 1.0, 'uncond': -1.0, 'negative': -0.0} {'cond': 1.0, 'uncond': 0.0, 'negative': -1.0}
  """
  return dict(cond=1.0, uncond=negative_weight - 1.0, negative=-negative_weight)


def nfsd(time: Array, *, null_until: float = 0.2) -> Row:
  """Noise-free score distillation: s (eps_c - eps_u) + delta_D (arXiv:2310.17590, section 4).

  delta_D stands for the part of the prediction that brings the image to the data: eps_u itself at little noise, where
  it has hardly any noise in it, and eps_u - eps_n above. With eps_guided = eps_u + s (eps_c - eps_u) that is
  eps_guided, less eps_n from `null_until` on.

  Args:
    time: [B], fraction of the schedule.
    null_until: fraction of the schedule up to which nothing is subtracted.

  >>> print(nfsd(jnp.array([0.1, 0.5]))['negative'])
  [-0. -1.]
  """
  return dict(guided=1.0, negative=-(time >= null_until).astype(jnp.float32))


def bridge(time: Array, *, bridged: Array | float = 1.0) -> Row:
  """From a described source to the target: s (eps_target - eps_source) (SDS-Bridge, arXiv:2406.09417, section 4).

  The target's description stands in for the prompt and the source's for the empty one, so that with a diffusers scale
  s it is eps_guided - eps_u. The paper begins with SDS: `bridged` 0, with the usual prompts.

  Args:
    time: as in `sds`.
    bridged: 0 or 1, a scalar, perhaps traced.

  >>> print(bridge(0.5), bridge(0.5, bridged=0.0))
  {'guided': 1.0, 'uncond': -1.0, 'eps': 0.0} {'guided': 1.0, 'uncond': -0.0, 'eps': -1.0}
  """
  return dict(guided=1.0, uncond=-bridged, eps=bridged - 1.0)


ROWS: dict[str, Callable[..., Row]] = {"sds": sds, "score": score, "csd": csd, "nfsd": nfsd, "bridge": bridge}
"""Name -> (time [B], **options) -> row."""


def linear(row: Callable[..., Row]) -> Callable[..., tuple[Array, dict[str, Array]]]:
  """The estimator of a row, with the signature that `estimators` describes; it passes its options on to the row.

  All predictions come from one call of the network; sides that no coefficient needs are not asked.

  Args:
    row: (time [B], **options) -> `Row`.

  Returns:
    The estimator. It raises ValueError where the row names a single side and the denoiser is not a guided one, or cond
    lacks that side.

  Example: how much the network says beyond the noise that is there, for one that always says 1.
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> x, t = jnp.zeros((1, 2)), jnp.array([5])
    >>> residual, seen = linear(sds)(lambda *a: jnp.ones((1, 2)), None, schedule_from_config({}), x, t, 0.25 + x, None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  def estimator(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
                keys: Array | None = None, **options: Any) -> tuple[Array, dict[str, Array]]:
    coefficients = {name: c for name, c in row(t / schedule.alpha.shape[0], **options).items() if not _is_zero(c)}
    z = add_noise(schedule, x, eps, t)
    found = {**_ask(denoise_fn, params, z, t, cond, coefficients), "eps": eps}
    residual = jnp.zeros(x.shape, jnp.float32)
    for name, coefficient in coefficients.items():
      residual += per_example(jnp.asarray(coefficient, jnp.float32), residual) * found[name].astype(jnp.float32)
    eps_hat = (found["guided"] if "guided" in found else found["cond"]).astype(x.dtype)
    return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))

  return estimator


def _is_zero(coefficient: Array | float) -> bool:
  return isinstance(coefficient, (int, float)) and coefficient == 0


def _ask(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any, wanted: Row) -> dict[str, Array]:
  """The predictions that a row names, under their names; `guided` too wherever its sides are asked anyway."""
  if not {"cond", "uncond", "negative"} & wanted.keys():
    return dict(guided=denoise_fn(params, z, t, cond))
  if not isinstance(denoise_fn, Guided):
    raise ValueError(f"this estimator asks for {', '.join(wanted)} apart: give it a denoiser of guidance.guided, and "
                     "cond=dict(cond=..., uncond=...)")
  if "negative" in wanted and "negative" not in cond:
    raise ValueError(f"this estimator asks for a negative prompt, but cond has only {', '.join(sorted(cond))}: add "
                     "cond['negative'], of the same structure as cond['cond']")
  asked = cond if "negative" in wanted else {name: side for name, side in cond.items() if name != "negative"}
  found = predictions(denoise_fn.denoise_fn, params, z, t, asked)
  return {**found, "guided": denoise_fn.combine(found)} if "guided" in wanted else found
