"""What a pose-conditioned prior is told: a picture, seen once; and of each view, where it stands relative to it."""
from __future__ import annotations

from typing import Any

import ml_collections

from sds_jax.priors import sight as sight_lib
from sds_jax.priors.prior import Prior
from sds_jax.priors.sight import Seen
from sds_jax.types import Array, Params
from sds_jax.views import poses


def of_views(prior: Prior, params: Params, config: ml_collections.FrozenConfigDict, told: dict[str, Any],
             azimuth: Array, elevation: Array) -> dict[str, Any]:
  """`cond` and `uncond` of an object's views, and the null condition as `negative` where an estimator wants one.

  Args:
    params: the prior's; its projection is made use of.
    told: `seen` (`Sight.see`), and `azimuth` and `elevation` [] of its camera, radians.
    azimuth, elevation: of the views, [B], radians.
  """
  seen: Seen = told["seen"]
  cond = prior.sight.tell(params, seen, poses.relative_pose(
      elevation, azimuth, told["elevation"][None], told["azimuth"][None]))
  null = sight_lib.null(cond)
  negative = dict(negative=null) if config.distillation.estimator in ("csd", "nfsd") else {}
  return dict(cond=cond, uncond=null, **negative)


def text_dim(told: dict[str, Any], prior: Prior) -> int:
  """Width of what the U-Net attends to."""
  return prior.sight.projection.out_features if prior.sight else told["null"].shape[-1]
