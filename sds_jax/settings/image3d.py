"""The settings of image-to-3D."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.diffusion import estimators
from sds_jax.priors import sources
from sds_jax.schema import file, group, one_of, replaced, sentence, setting
from sds_jax.settings.camera import CameraSettings
from sds_jax.settings.common import ObjectSettings, without_effect
from sds_jax.settings.distillation import DistillationSettings, with_estimators
from sds_jax.settings.loss import PhotoLossSettings
from sds_jax.settings.photo import PhotoSettings
from sds_jax.settings.prior import PriorSettings, WordsSettings
from sds_jax.settings.shading import ShadingSettings
from sds_jax.settings.training import ObjectTrainingSettings

_WITHOUT_EFFECT = {"distillation.perp_neg": "none", "distillation.view_words": "none", "distillation.latent_until": 0.0,
                   "distillation.source": "", "training.particles": 1, "negative_prompt": ""}
"""Settings of text, of edits or of several objects, and their one legal value."""


def _distillation() -> DistillationSettings:
  return replaced(with_estimators(), {"view_words": "none"})


def conditioned_on_one() -> list[str]:
  """Returns the names of the estimators for a photo, which compare no two descriptions."""
  return [name for name, record in estimators.ESTIMATORS.items() if not record.needs & {"pair", "source"}]


@dataclasses.dataclass(frozen=True)
class Image3D(ObjectSettings):
  """The settings of an object from a photo. Defaults: two CPU cores and the shipped view prior."""
  job: str = setting("image3d", one_of(("image3d",)), "the task: which tree of settings this is")
  image: str = setting("picture.png", file(empty=False), "file of the photo")
  prompt: str = setting("", sentence(words=" (empty: none)"), "with `loss.words`: description for the second prior")
  picture: PhotoSettings = group(PhotoSettings)
  words: WordsSettings = group(WordsSettings)
  prior: PriorSettings = group(lambda: PriorSettings(name=sources.SHIPPED_VIEWS))
  distillation: DistillationSettings = group(_distillation)
  # One camera for all views: the prior knows nothing of a view but its pose.
  camera: CameraSettings = group(lambda: CameraSettings(
      distance=(2.7, 2.7), fov_deg=(46.0, 46.0), position_jitter=0.0, target_std=0.0, up_std=0.0))
  # The photo's own light stays in the colours of the object.
  shading: ShadingSettings = group(lambda: ShadingSettings(lambertian=0.0, albedo_until=1.0))
  loss: PhotoLossSettings = group(PhotoLossSettings)
  training: ObjectTrainingSettings = group(lambda: ObjectTrainingSettings(steps=600))

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions between the groups."""
    yield from without_effect(self, path, _WITHOUT_EFFECT, "has no effect on an object from a photo")
    if estimators.find(self.distillation.estimator).needs & {"pair", "source"}:
      yield (f"{path}.distillation.estimator={self.distillation.estimator!r} compares two descriptions, and a photo is "
             f"one: set it to one of {', '.join(conditioned_on_one())}")
    yield from self._cameras(path)
    yield from self._maps(path)
    yield from self._second_prior(path)
    for name in ("lambertian", "textureless"):
      if value := getattr(self.shading, name):
        yield f"{path}.shading.{name}={value!r} must be 0.0: the photo's own light is in the colours of the object"
    # Last: the first contradiction is the one reported, and those above name the photo as the reason.
    yield from super().relations(path)

  def _cameras(self, path: str) -> Iterator[str]:
    c = self.camera
    for name, (low, high) in (("distance", c.distance), ("fov_deg", c.fov_deg)):
      if low != high:
        yield (f"{path}.camera.{name}={(low, high)!r} is a range, but all views have the photo's camera: give one "
               f"value twice, such as {(low, low)}")
    if c.relative:
      yield f"{path}.camera.relative=True must be False: {path}.camera.distance is the photo's distance, in world units"
    if any(c.focal):
      yield f"{path}.camera.focal={c.focal!r} must be (0.0, 0.0): {path}.camera.fov_deg gives the photo's camera"
    for name in ("position_jitter", "target_std", "up_std"):
      if value := getattr(c, name):
        yield (f"{path}.camera.{name}={value!r} must be 0.0: the prior is conditioned on the pose of a view, which "
               "leaves out the camera's random shift and turn")

  def _maps(self, path: str) -> Iterator[str]:
    for name in ("depth", "normals"):
      file_name, weight = getattr(self.picture, name), getattr(self.loss, name)
      if file_name and weight == 0.0:
        yield (f"{path}.picture.{name}={file_name!r} has no effect because {path}.loss.{name} is 0.0: give a weight, "
               f"such as --config.loss.{name}=10.0, or leave out the map")
      if weight != 0.0 and not file_name:
        yield (f"{path}.loss.{name}={weight!r} needs a map of the photo: give its file as {path}.picture.{name}, or "
               "set the loss to 0.0")

  def _second_prior(self, path: str) -> Iterator[str]:
    has_prompt, has_weight = bool(self.prompt.strip()), self.loss.words != 0.0
    if has_prompt and not has_weight:
      yield (f"{path}.prompt={self.prompt!r} is the condition of a second prior, whose weight {path}.loss.words is "
             "0.0: give a weight, such as --config.loss.words=0.1, or leave out the prompt")
    if has_weight and not has_prompt:
      yield (f"{path}.loss.words={self.loss.words!r} is the weight of a second prior, whose condition {path}.prompt is "
             "empty: give a prompt, or set the loss to 0.0")
    w = self.words
    if self.loss.words != 0.0 and not w.path and (not sources.is_name(w.prior) or sources.takes_pictures(w.prior)):
      yield (f"{path}.words.prior={w.prior!r} is no prior that is conditioned on text: it must be shapeworld, "
             f"{', '.join(sources.published_names(pictures=False))}, a hub id 'owner/name' or a folder")
