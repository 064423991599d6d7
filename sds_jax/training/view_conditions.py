"""Conditions of a prior that is conditioned on a photo: its features, and the pose of each view."""
from __future__ import annotations

from typing import Any

from sds_jax.diffusion.estimators import find
from sds_jax.priors.photo import PhotoFeatures, null_condition
from sds_jax.priors.prior import Prior
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.types import Array, Params
from sds_jax.views import poses


def of_views(prior: Prior, params: Params, distillation: DistillationSettings, conditions: dict[str, Any],
             azimuth: Array, elevation: Array) -> dict[str, Any]:
  """Returns `cond` and `uncond` of an object's views.

  For an estimator that needs `negative`, the null condition is added as such.

  Args:
    prior: conditioned on a photo.
    params: of the prior; the projection is read.
    distillation: settings that name the estimator.
    conditions: `features` (of `PhotoConditioning.encode`), and `azimuth` and `elevation` [] of the photo's camera,
      radians.
    azimuth, elevation: of the views, [B], radians.
  """
  features: PhotoFeatures = conditions["features"]
  cond = prior.photo.conditions(params, features, poses.relative_pose(
      elevation, azimuth, conditions["elevation"][None], conditions["azimuth"][None]))
  null = null_condition(cond)
  negative = dict(negative=null) if "negative" in find(distillation.estimator).needs else {}
  return dict(cond=cond, uncond=null, **negative)


def text_dim(conditions: dict[str, Any], prior: Prior) -> int:
  """Returns the width of the tokens that the U-Net attends to.

  Args:
    conditions: of the run, for a prior that is conditioned on a prompt.
    prior: the prior.
  """
  return prior.photo.projection.out_features if prior.photo else conditions["null"]["text"].shape[-1]
