"""The settings of images from prompts, by any parameterization of an image."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.schema import Legal, group, one_of, replaced, setting
from sds_jax.settings.common import RunSettings, without_effect
from sds_jax.settings.distillation import DistillationSettings, with_estimators
from sds_jax.settings.generator import ImageGeneratorSettings, is_users_own
from sds_jax.settings.optimizer import OptimizerSettings
from sds_jax.settings.training import TrainingSettings

_WITHOUT_EFFECT = {"distillation.perp_neg": "none", "distillation.latent_until": 0.0, "distillation.view_words": "none",
                   "optimizer.background_factor": 1.0}
"""Settings of 3D objects, and their one legal value."""


def prompts_of(prompt: str) -> list[str]:
  """Returns the prompts that the setting `prompt` joins by "|".

  >>> prompts_of("a red cube | a red sphere")
  ['a red cube', 'a red sphere']
  """
  return [part.strip() for part in prompt.split("|")]


_PROMPTS = Legal(lambda v: len(v) <= 10_000 and all(prompts_of(v)),
                 "a text of 1 to 10,000 characters, or several with | between them")


def _distillation() -> DistillationSettings:
  return replaced(with_estimators(), {
      "view_words": "none", "sds.guidance_scale": 5.0, "sds.t_max": ((0.0, 0.98), (1.0, 0.4))})


@dataclasses.dataclass(frozen=True)
class Image2D(RunSettings):
  """The settings of images from prompts. Defaults: two CPU cores, shipped prior."""
  job: str = setting("image2d", one_of(("image2d",)), "the task: which tree of settings this is")
  prompt: str = setting("a red cube", _PROMPTS, "text of the image; 'A|B': a prompt for each frame, blended in between")
  generator: ImageGeneratorSettings = group(ImageGeneratorSettings)
  distillation: DistillationSettings = group(_distillation)
  optimizer: OptimizerSettings = group(lambda: OptimizerSettings(learning_rate=0.05, warmup_steps=10))
  training: TrainingSettings = group(lambda: TrainingSettings(steps=300, render_every=50))

  def independent(self) -> tuple[int, str]:
    """Returns the number of frames, or else of particles, and its setting."""
    g = self.generator
    # Frames first: where there are several, they are what differs between neighbouring views.
    return (g.frames, "generator.shared.frames") if g.frames > 1 else (g.particles, "generator.particles")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions between the groups."""
    yield from super().relations(path)
    yield from without_effect(self, path, _WITHOUT_EFFECT, "has no effect on images")
    g, views, texts = self.generator, self.training.views, len(prompts_of(self.prompt))
    if is_users_own(g.name):
      return  # the frames are known once the user's module is imported
    frames = f"{g.frames} frame{'s' * (g.frames > 1)}"
    if views % (g.particles * g.frames):
      yield (f"{path}.training.views={views} is no multiple of {path}.generator.particles={g.particles} times the "
             f"{frames} of {g.name}: set it to {g.particles * g.frames} or a multiple")
    if texts > g.frames:
      yield (f"{path}.prompt={self.prompt!r} has {texts} parts, but {path}.generator.name={g.name!r} makes {frames}: "
             "leave parts out, or take the generator shared with as many frames")
