"""The random draws of one step outside of the step, for timing parts of a step and for PyTorch."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.benchmarks.workload import Workload
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import draw_noise
from sds_jax.fields.background import LEARNT
from sds_jax.generators.protocol import Draws
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import conditions, distil
from sds_jax.training.keys import progress_at, step_keys
from sds_jax.types import Array, Camera
from sds_jax.views import cameras, lights


@dataclasses.dataclass(frozen=True)
class StepDraws:
  """Everything that a step draws at random, and its inputs that depend on its number.

  Attributes:
    keyed: the keys of the step, the numbers of its views and the progress, as `FieldGenerator.render_step` takes them.
    cameras: leaves [V, ...].
    background: [V, H, W, 3]; None where the background is learnt.
    jitter: [V H W] in [0, 1), offsets of the samples along the rays.
    light: [V, 3], positions in world units.
    shading: mode and strengths, one for all views.
    cond: conditions of the prior by side of the guidance.
    t: [V] int32.
    eps: [V, *x_shape].
  """
  keyed: Draws
  cameras: Camera
  background: Array | None
  jitter: Array
  light: Array
  shading: lights.Shading
  cond: dict[str, Any]
  t: Array
  eps: Array

  @property
  def progress(self) -> Array:
    """Returns the fraction [] float32 of the run that is done."""
    return self.keyed.progress


jax.tree_util.register_dataclass(StepDraws)


def draw(work: Workload, step: Array) -> StepDraws:
  """Repeats the draws of step number `step` [] int32.

  Every key is split as in `generators.field` and `training.distil`. The comparison of gradients in `peer` fails where
  the draws differ from the step's own.
  """
  generator, d, views = work.generator, work.settings.distillation, work.settings.training.views
  # All splits below repeat those of `FieldGenerator.render_step` and `score_distillation`.
  index, size = jnp.arange(views), generator.size
  keyed = Draws(step_keys(work.key, step), index, progress_at(step, work.settings.training.steps))
  cams, azimuth, elevation = generator.viewpoints.draw(keyed)
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(keyed.keys["rest"], i), 3))(index)
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, size, size))(cams)
  background = None
  if work.settings.background.name not in LEARNT:
    background = jax.vmap(lambda key, directions: generator.background.apply({}, key, directions.reshape(-1, 3)))(
        keys[:, 1], rays.directions).reshape(rays.directions.shape)
  eps_like = jnp.zeros((views, *work.prior.x_shape))
  return StepDraws(
      keyed=keyed, cameras=cams, background=background,
      jitter=jax.vmap(lambda key: jax.random.uniform(key, (size * size,)))(keys[:, 2]).reshape(-1),
      light=jax.vmap(lambda key, p: lights.sample_light(key, p, generator.lights))(keys[:, 0], cams.position),
      shading=lights.sample_shading(keyed.keys["shading"], keyed.progress, generator.lights),
      cond=conditions.of_views(work.prior, work.prior_params, d, work.conditions, cams, azimuth, elevation,
                               keyed.progress),
      t=distil.draw_t(d, work.prior, keyed.keys["t"], keyed.progress, index, views),
      eps=draw_noise(jax.random.split(keyed.keys["distil"], 3)[1], index, eps_like, d.antithetic_noise))


def make_drawer(work: Workload) -> Callable[[Array], StepDraws]:
  """Returns `draw` of this workload, jitted.

  (number of the step [] int32) -> draws. Compiles once for all steps.
  """
  return jax.jit(lambda step: draw(work, step))


def diffusers_scale(settings: DistillationSettings, progress: Array) -> Array:
  """Returns the guidance scale s [] of diffusers' convention, whatever that of the settings."""
  scale = schedule_value(settings.guidance_scale, progress)
  # s of diffusers is 1 + omega of DreamFusion (arXiv:2209.14988): 1 and 0 are no guidance.
  return scale + 1 if settings.guidance_convention == "dreamfusion" else scale
