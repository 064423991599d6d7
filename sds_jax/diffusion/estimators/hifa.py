"""HiFA: SDS, and a second term at the image for priors that diffuse latents (arXiv:2305.18766)."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp  # noqa: F401 (of the example)

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, Moment, SecondGradient, for_small_prior
from sds_jax.diffusion.estimators.linear import linear, sds
from sds_jax.diffusion.schedules import at_times, per_example
from sds_jax.schema import Scheduled, scheduled, setting
from sds_jax.types import Array, Schedule


def image_residual(schedule: Schedule, t: Array, image: Array, image_hat: Array) -> Array:
  """Returns alpha / sigma (image - image_hat), for `distillation.inject` at the image (arXiv:2305.18766, eq. 10).

  In the latent space alpha / sigma (x - x0_hat) is the residual of SDS. This is the residual that SDS would have if the
  prior diffused images themselves. The decoder is not differentiated.

  Args:
    schedule: of the prior.
    t: [B] integer times.
    image: [B, H, W, 3], rendered.
    image_hat: [B, H, W, 3], the decoded x0_hat of the same step of `score_distillation` (in its aux).

  Returns:
    [B, H, W, 3] float32; no gradient. The caller multiplies the residual by w(t) and by the weight of this term.

  Example:
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> print(image_residual(flow_schedule(4), jnp.array([0]), jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1))))
    [[[[3.]]]]
  """
  ratio = at_times(schedule.alpha, t) / at_times(schedule.sigma, t)
  difference = (image - image_hat).astype(widened(image))
  return jax.lax.stop_gradient(per_example(ratio, difference) * difference)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of HiFA."""
  image_weight: Scheduled = setting(0.01, scheduled(0.0), "weight of the term at the image")


def _term(options: Options, moment: Moment, aux: Any) -> SecondGradient:
  image = moment.inputs["image"]
  # Only the rendered image moves; the decoder has no backward pass.
  image_hat = jax.lax.stop_gradient(moment.decode(aux.x0_hat))
  residual = image_residual(moment.schedule, aux.t, image, image_hat)
  return SecondGradient(image, residual, moment.now(options.image_weight))


def _relations(distillation: Any, path: str) -> Iterator[str]:
  if distillation.latent_until > 0.0:
    yield (f"{path}.latent_until={distillation.latent_until} makes latents of normals, which belong to no image, but "
           f"{path}.estimator={distillation.estimator!r} has a term at the image: set latent_until to 0.0")


PUBLISHED = Draw("sigma2", "dreamfusion", guidance_scale=100.0, t_min=((0.0, 0.98), (1.0, 0.3)),
                 t_max=((0.0, 0.98), (1.0, 0.3)), t_warp="sqrt")

SPEC = Estimator(
    "hifa", linear(sds), paper="2305.18766", residual="SDS, and alpha / sigma (image - decoded x0) at the image",
    calls="2, and the decoder", options=Options, needs=frozenset({"image"}), published=PUBLISHED,
    small=for_small_prior(PUBLISHED), term=_term, relations=_relations,
    source="threestudio's code: t comes down with the square root of progress. The z-variance loss and the x0 of "
           "several steps are left out.")
