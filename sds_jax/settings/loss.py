"""Weights of the losses: `loss`. A weight is a number or points over the run (`schema.Scheduled`)."""
from __future__ import annotations

import dataclasses

from sds_jax.schema import Scheduled, scheduled, setting

_WEIGHT = scheduled(0.0)


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """The weights of the losses of images."""
  sds: Scheduled = setting(1.0, _WEIGHT, "score distillation, by whichever estimator")


@dataclasses.dataclass(frozen=True)
class ObjectLossSettings(LossSettings):
  """The weights of the losses of an object; means over all pixels of a step's views."""
  orientation: Scheduled = setting(
      # DreamFusion's weights, over the first third of the run.
      ((0.0, 1e-4), (0.33, 1e-2)), _WEIGHT, "normals that face away from the camera; text-to-3D: in shaded steps only")
  opacity: Scheduled = setting(0.0, _WEIGHT, "mean of sqrt(opacity^2 + 0.01)")
  entropy: Scheduled = setting(0.0, _WEIGHT, "binary entropy of the opacity: 0 where a pixel is surely empty or full")


@dataclasses.dataclass(frozen=True)
class PhotoLossSettings(ObjectLossSettings):
  """The weights of the losses of an object from a photo. `rgb` to `smoothness` concern the photo's own view alone."""
  orientation: Scheduled = setting(0.0, _WEIGHT, "normals that face away from the camera, in all views; costs normals")
  rgb: Scheduled = setting(3000.0, _WEIGHT, "squared error of the photo's colours")
  mask: Scheduled = setting(300.0, _WEIGHT, "squared error of the photo's opacity")
  depth: Scheduled = setting(0.0, _WEIGHT, "1 - Pearson's correlation with the map `picture.depth`")
  normals: Scheduled = setting(0.0, _WEIGHT, "1 - cosine to the map `picture.normals`")
  smoothness: Scheduled = setting(0.0, _WEIGHT, "squared differences of neighbouring normals in the photo's view")
  words: Scheduled = setting(0.0, _WEIGHT, "distillation from the second, text-conditioned prior `words`")
