"""Estimators that are linear in noise predictions at one z_t: each is a row of coefficients.

  residual = a eps_guided + b eps_c + c eps_u + d eps_n + e eps

eps_c, eps_u, eps_n are the network's predictions under the prompt, the empty prompt and a negative prompt. eps_guided
is the guided prediction of `guidance`, out of eps_c and eps_u. eps is the noise that was added.

  >>> print(sds(0.5), csd(0.5, negative_weight=0.25))
  {'guided': 1.0, 'eps': -1.0} {'cond': 1.0, 'uncond': -0.75, 'negative': -0.25}
"""
from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Draw, EstimateFn, Estimator, Moment, for_small_prior
from sds_jax.diffusion.guidance import Guided, check_sides, predict, predictions
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, per_example
from sds_jax.schema import Scheduled, number, scheduled, sentence, setting
from sds_jax.types import Array, DenoiseFn, Params, Schedule

Row = dict[str, Array | float]
"""Name of a summand (guided, cond, uncond, negative, eps) -> its coefficient, a scalar or [B]. Where absent: 0, and the
network is not asked."""


def sds(time: Array) -> Row:
  """Returns eps_guided - eps: score distillation sampling (DreamFusion, arXiv:2209.14988, eq. 3).

  Subtracting eps changes no expectation. The subtraction lowers the variance where sigma^2 > alpha^2 c^2, c^2 the
  variance of the data along a direction, and raises the variance below that noise level. The guided part is the
  residual of the prior plus omega times that of a classifier: eps_guided - eps = (eps_c - eps) + omega (eps_c - eps_u).

  Args:
    time: [B], fraction of the schedule in [0, 1); only `nfsd` uses the time.

  >>> print(sds(0.5))
  {'guided': 1.0, 'eps': -1.0}
  """
  return dict(guided=1.0, eps=-1.0)


def score(time: Array) -> Row:
  """Returns eps_guided: SDS without its control variate (arXiv:2209.14988, appendix A.4).

  The expectation equals that of SDS.

  Args:
    time: [B], fraction of the schedule; not used.

  >>> print(score(0.5))
  {'guided': 1.0}
  """
  return dict(guided=1.0)


def csd(time: Array, *, negative_weight: Array | float = 0.0) -> Row:
  """Returns (eps_c - eps_u) - w2 (eps_n - eps_u): classifier score distillation (arXiv:2310.19415).

  The guidance scale has no effect: w(t) and the learning rate take its place.

  Args:
    time: [B], fraction of the schedule; not used.
    negative_weight: w2, a scalar, perhaps traced; with the Python number 0 the negative prompt is not asked.

  >>> print(csd(0.5), csd(0.5, negative_weight=1.0))
  {'cond': 1.0, 'uncond': -1.0, 'negative': -0.0} {'cond': 1.0, 'uncond': 0.0, 'negative': -1.0}
  """
  return dict(cond=1.0, uncond=negative_weight - 1.0, negative=-negative_weight)


def nfsd(time: Array, *, null_until: float = 0.2) -> Row:
  """Returns s (eps_c - eps_u) + delta_D: noise-free score distillation (arXiv:2310.17590, section 4).

  delta_D is the part of the prediction that brings the image to the data. At little noise delta_D is eps_u, which holds
  hardly any noise there, and eps_u - eps_n above. With eps_guided = eps_u + s (eps_c - eps_u) the sum is eps_guided,
  less eps_n from `null_until` on.

  Args:
    time: [B], fraction of the schedule.
    null_until: fraction of the schedule up to which nothing is subtracted.

  >>> print(nfsd(jnp.array([0.1, 0.5]))['negative'])
  [-0. -1.]
  """
  return dict(guided=1.0, negative=-(time >= null_until).astype(jnp.float32))


def bridge(time: Array, *, bridged: Array | float = 1.0) -> Row:
  """Returns s (eps_target - eps_source), from a described source to the target (arXiv:2406.09417, section 4).

  The description of the target replaces the prompt, and that of the source the empty prompt. So with a diffusers scale
  s the residual is eps_guided - eps_u. The paper begins with SDS: `bridged` 0, with the usual prompts.

  Args:
    time: [B], fraction of the schedule; not used.
    bridged: 0 or 1, a scalar, perhaps traced.

  >>> print(bridge(0.5), bridge(0.5, bridged=0.0))
  {'guided': 1.0, 'uncond': -1.0, 'eps': 0.0} {'guided': 1.0, 'uncond': -0.0, 'eps': -1.0}
  """
  return dict(guided=1.0, uncond=-bridged, eps=bridged - 1.0)


def linear(row: Callable[..., Row]) -> EstimateFn:
  """Returns the estimator of a row, with the row's keywords and docstring.

  All predictions come from one call of the network; sides that no coefficient needs are not asked.

  Args:
    row: (time [B], **arguments) -> `Row`.

  Returns:
    The estimator, with the signature that `estimators` describes. The estimator raises ValueError where the row names a
    single side and the denoiser is not a guided one, or where cond lacks that side.

  Example: a network that predicts 1 everywhere, where the noise is 1/4.
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> x, t = jnp.zeros((1, 2)), jnp.array([5])
    >>> residual, seen = linear(sds)(lambda *a: jnp.ones((1, 2)), None, schedule_from_config({}), x, t, 0.25 + x, None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  def estimator(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
                keys: Array | None = None, **arguments: Any) -> tuple[Array, dict[str, Array]]:
    # A Python 0 removes its side from the network's batch; a traced coefficient cannot be tested, and its side stays.
    coefficients = {name: c for name, c in row(t / schedule.alpha.shape[0], **arguments).items() if not _is_zero(c)}
    z = add_noise(schedule, x, eps, t)
    eps_of = {**_ask(denoise_fn, params, z, t, cond, coefficients), "eps": eps}
    # In float32, because the coefficients mostly sum to 0 and the predictions cancel.
    wide = widened(x)
    residual = jnp.zeros(x.shape, wide)
    for name, coefficient in coefficients.items():
      residual += per_example(jnp.asarray(coefficient, wide), residual) * eps_of[name].astype(wide)
    eps_hat = (eps_of["guided"] if "guided" in eps_of else eps_of["cond"]).astype(x.dtype)
    return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))

  # `Estimator` reads the keyword-only parameters by `inspect`, and ** would hide those of the row.
  signature = inspect.signature(estimator)
  positional = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
  own = [p for p in inspect.signature(row).parameters.values() if p.kind == p.KEYWORD_ONLY]
  estimator.__signature__ = signature.replace(parameters=positional + own)
  estimator.__name__, estimator.__doc__ = row.__name__, row.__doc__
  return estimator


def _is_zero(coefficient: Array | float) -> bool:
  return isinstance(coefficient, (int, float)) and coefficient == 0


def _ask(denoise_fn: DenoiseFn, params: Params, z: Array, t: Array, cond: Any, wanted: Row) -> dict[str, Array]:
  """Returns the predictions that a row names, by name; also `guided` where its sides are asked anyway."""
  if not {"cond", "uncond", "negative"} & wanted.keys():
    return dict(guided=predict(denoise_fn, params, z, t, cond))
  if not isinstance(denoise_fn, Guided):
    raise ValueError(f"this estimator asks for {', '.join(wanted)} apart: give it a denoiser of guidance.guided, and "
                     "cond=dict(cond=..., uncond=...)")
  check_sides(cond)
  if "negative" in wanted and "negative" not in cond:
    raise ValueError(f"this estimator asks for a negative prompt, but cond has only {', '.join(sorted(cond))}: add "
                     "cond['negative'], of the same structure as cond['cond']")
  # Without the negative prompt the network's batch is smaller by one side.
  asked = cond if "negative" in wanted else {name: side for name, side in cond.items() if name != "negative"}
  eps_of = predictions(denoise_fn.denoise_fn, params, z, t, asked, denoise_fn.group)
  return {**eps_of, "guided": denoise_fn.combine(eps_of, z, t)} if "guided" in wanted else eps_of


@dataclasses.dataclass(frozen=True)
class CSDOptions:
  """Options of classifier score distillation."""
  negative_prompt: str = setting("oversaturated color, ugly, tiling, low quality, noisy", sentence(), "prompt of eps_n")
  negative_weight: Scheduled = setting(((0.0, 0.0), (0.5, 1.0)), scheduled(-100.0, 100.0), "w2, weight of eps_n")


@dataclasses.dataclass(frozen=True)
class NFSDOptions:
  """Options of noise-free score distillation."""
  negative_prompt: str = setting(
      "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy",
      sentence(), "prompt of eps_n")
  null_until: float = setting(0.2, number(0.0, 1.0, ", a fraction of the schedule"), "t from which eps_n is subtracted")


@dataclasses.dataclass(frozen=True)
class BridgeOptions:
  """Options of SDS-Bridge."""
  target_words: str = setting(", detailed high resolution, high quality, sharp", sentence(),
                              "added to the prompt for the target")
  source_words: str = setting(
      ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed", sentence(),
      "added to the prompt for the source")
  begins: float = setting(0.8, number(0.0, 1.0, ", a fraction of the run"), "SDS up to this fraction of the run")


def _bridge_arguments(options: BridgeOptions, moment: Moment) -> dict[str, Any]:
  return dict(bridged=jnp.asarray(moment.progress >= options.begins, jnp.float32))


def _bridge_relations(distillation: Any, path: str) -> Iterator[str]:
  if distillation.perp_neg != "none":
    yield (f"{path}.perp_neg={distillation.perp_neg!r} would replace the description of the target by the prompt with "
           f"{path}.estimator={distillation.estimator!r}: set perp_neg to none")


# Two knots 0.001 apart make a jump: a scalar schedule is linear between knots.
_AFTER_A_FIFTH, _AFTER_HALF = (((0.0, 0.98), (at, 0.98), (at + 0.001, 0.5)) for at in (0.2, 0.5))

SDS = Estimator(
    "sds", linear(sds), paper="2209.14988, eq. 3", residual="e_g(z_t) - e", calls="2")

SCORE = Estimator(
    "score", linear(score), paper="2209.14988, A.4", residual="e_g(z_t): SDS without its control variate", calls="2")

CSD = Estimator(
    "csd", linear(csd), paper="2310.19415", residual="(e_c - e_u) - w (e_n - e_u)", calls="3", options=CSDOptions,
    needs=frozenset({"uncond", "negative"}), guided=False,
    published=Draw("uniform", guidance_scale=1.0, t_max=_AFTER_HALF),
    source="The coarse stage of the authors' code. There the gradient is brought to length 1; here the optimiser's own "
           "scaling takes that place.")

NFSD = Estimator(
    "nfsd", linear(nfsd), paper="2310.17590", residual="e_g - e_n, and e_g alone at little noise", calls="3",
    options=NFSDOptions, needs=frozenset({"uncond", "negative"}),
    published=Draw(guidance_scale=7.5), small=for_small_prior(Draw()),
    source="The paper, as others have run it; there is no code of the authors.")

BRIDGE = Estimator(
    "bridge", linear(bridge), paper="2406.09417", residual="SDS, then s (e_target - e_source)", calls="2",
    options=BridgeOptions, needs=frozenset({"uncond", "pair"}),
    published=Draw(guidance_scale=((0.0, 100.0), (0.8, 100.0), (0.801, 1.0)), t_max=_AFTER_A_FIFTH),
    small=for_small_prior(Draw(t_max=_AFTER_A_FIFTH)),
    arguments=_bridge_arguments, relations=_bridge_relations,
    source="SDS first, then the bridge. The authors' code gives the second stage a weight of 1.")
