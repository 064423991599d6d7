"""Settings that several tasks have in common, and the relations between their groups."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from sds_jax.diffusion import estimators
from sds_jax.priors import sources
from sds_jax.schema import folder, group, is_group, one_of, sentence, setting, whole
from sds_jax.settings.background import BackgroundSettings
from sds_jax.settings.camera import CameraSettings
from sds_jax.settings.distillation import DistillationSettings, with_estimators
from sds_jax.settings.export import ExportSettings
from sds_jax.settings.field import FieldSettings
from sds_jax.settings.generator import FIELD, ObjectGeneratorSettings
from sds_jax.settings.loss import LossSettings, ObjectLossSettings
from sds_jax.settings.optimizer import OptimizerSettings
from sds_jax.settings.prior import PriorSettings, controlnet_mismatch, prior_mismatch
from sds_jax.settings.render import OccupancySettings, RenderSettings
from sds_jax.settings.shading import ShadingSettings
from sds_jax.settings.training import DivergenceSettings, ObjectTrainingSettings, ParallelSettings, TrainingSettings


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """The settings of every task."""
  # No value is legal here: the tree of each task declares its own.
  job: str = setting("", one_of(()), "the task: which tree of settings this is; comes with the file of --config")
  prompt: str = setting("a red cube", sentence(empty=False), "text that the prior is conditioned on")
  negative_prompt: str = setting("", sentence(words=" (empty: none)"), "text of the unconditional side of guidance")
  seed: int = setting(0, whole(0, 2**31 - 1), "seed of every random draw of the run")
  workdir: str = setting("", folder(" (empty: runs/<prompt, photo or file of prompts>-<seed>)"),
                         "folder of the run; the flag --workdir goes before this setting")
  resume: str = setting("auto", one_of(("auto", "must", "never")),
                        "auto: go on from a checkpoint if there is any; must: there has to be one; never: start anew")
  prior: PriorSettings = group(PriorSettings)
  distillation: DistillationSettings = group(with_estimators)
  loss: LossSettings = group(LossSettings)
  optimizer: OptimizerSettings = group(OptimizerSettings)
  training: TrainingSettings = group(TrainingSettings)
  divergence: DivergenceSettings = group(DivergenceSettings)
  parallel: ParallelSettings = group(ParallelSettings)

  def independent(self) -> tuple[int, str]:
    """Returns how many unrelated images or objects a step has, and the setting with its value."""
    raise NotImplementedError

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions between the groups."""
    takes_images = None if self.prior.path else sources.takes_pictures(self.prior.name)  # before anything is fetched
    if takes_images is not None and (problem := prior_mismatch(self.job, takes_images)):
      yield f"{path}.prior.name={self.prior.name!r} {problem}"
    if self.prior.controlnet and (problem := controlnet_mismatch(self.job)):
      yield f"{path}.prior.controlnet={self.prior.controlnet!r} {problem}"
    warmup, steps = self.optimizer.warmup_steps, self.training.steps
    if warmup >= steps and warmup > 0:
      yield f"{path}.optimizer.warmup_steps={warmup} must be less than {path}.training.steps={steps}"
    if self.prior.dtype == "float16" and "score" in estimators.find(self.distillation.estimator).needs:
      yield (f"{path}.prior.dtype='float16' is too narrow for the gradient of the second network that "
             f"{path}.distillation.estimator={self.distillation.estimator!r} trains through the prior: set prior.dtype "
             "to bfloat16 or float32")
    yield from self._pairs(path)

  def _pairs(self, path: str) -> Iterator[str]:
    d, (count, name) = self.distillation, self.independent()
    # Antithetic pairs cancel noise only if both views belong to one object.
    if count > 1 and (d.antithetic_noise or d.t_sampler == "antithetic"):
      wanted, remedy = (("antithetic_noise=True", "antithetic_noise to False") if d.antithetic_noise else
                        ("t_sampler='antithetic'", "t_sampler to stratified"))
      yield (f"{path}.distillation.{wanted} pairs views of one object, but with {path}.{name}={count} neighbouring "
             f"views have nothing in common: set that to 1, or {remedy}")


_OF_FIELDS = ("field", "occupancy", "shading", "render.num_samples", "render.candidates", "render.block_points",
              "render.normals", "export.mesh_resolution", "export.mesh_threshold", "export.faces",
              "export.texture_size", "export.formats", "export.scale", "export.num_samples", "loss.orientation")
"""Settings and groups that only the package's own field reads."""


def concerns_fields(name: str) -> bool:
  """Returns whether a setting has no effect on a user's own 3D representation.

  >>> concerns_fields("field.mlp.hidden"), concerns_fields("render.height")
  (True, False)
  """
  return any(name == part or name.startswith(f"{part}.") for part in _OF_FIELDS)


@dataclasses.dataclass(frozen=True)
class ObjectSettings(RunSettings):
  """The settings of the tasks that make an object."""
  prompt: str = setting("a green cone on top of a blue cylinder", sentence(empty=False), "text of the object")
  generator: ObjectGeneratorSettings = group(ObjectGeneratorSettings)
  camera: CameraSettings = group(CameraSettings)
  shading: ShadingSettings = group(ShadingSettings)
  field: FieldSettings = group(FieldSettings)
  background: BackgroundSettings = group(BackgroundSettings)
  render: RenderSettings = group(RenderSettings)
  loss: ObjectLossSettings = group(ObjectLossSettings)
  training: ObjectTrainingSettings = group(ObjectTrainingSettings)
  occupancy: OccupancySettings = group(OccupancySettings)
  export: ExportSettings = group(ExportSettings)

  def independent(self) -> tuple[int, str]:
    """Returns the number of particles and its setting."""
    return self.training.particles, "training.particles"

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions between the groups."""
    yield from super().relations(path)
    if self.generator.name != FIELD:
      only = {name: value for name, value in flat(type(self)()).items() if concerns_fields(name)}
      if self.loss.orientation == 0.0:
        del only["loss.orientation"]  # 0 switches the loss off, as a representation without normals needs
      yield from without_effect(self, path, only, "has no effect on a representation of your own "
                                f"({path}.generator.name={self.generator.name!r})")
    group, particles = self.camera.group, self.training.particles
    if self.training.views % (group * particles):
      each = f" times {path}.training.particles={particles}" if particles > 1 else ""
      yield (f"{path}.training.views={self.training.views} is no multiple of {path}.camera.group={group}{each}, the "
             f"number of views around an object that are drawn together: set views to {group * particles} or a "
             "multiple")
    if self.parallel.shard_prior and self.training.guidance_every:
      yield (f"{path}.training.guidance_every={self.training.guidance_every} needs the whole prior on one device, but "
             f"{path}.parallel.shard_prior=True: set one of them to 0 or False")
    if self.camera.nearest() <= self.field.bound:
      yield (f"{path}.camera.distance={self.camera.distance!r} puts cameras inside the object's ball of radius "
             f"{path}.field.bound={self.field.bound}: the smallest distance must be larger")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
  """Returns a tree of settings as {dotted name: value}."""
  values = {}
  for field in dataclasses.fields(settings):
    value, name = getattr(settings, field.name), f"{prefix}{field.name}"
    values |= flat(value, f"{name}.") if is_group(value) else {name: value}
  return values


def without_effect(settings: RunSettings, path: str, only: dict[str, object], reason: str) -> Iterator[str]:
  """Yields a line for each setting that must keep one value in a task.

  Args:
    settings: the tree.
    path: prefix of the settings' names.
    only: dotted name -> the one legal value.
    reason: follows setting and value in the line.
  """
  for name, legal in only.items():
    value = settings
    for part in name.split("."):
      value = getattr(value, part)
    if value != legal:
      yield f"{path}.{name}={value!r} {reason}: leave it at {legal!r}"
