"""The parts of a 3D object from their groups of settings."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax

from sds_jax import schema
from sds_jax.fields import background as backgrounds, field as fields
from sds_jax.generators.catalogue import GeneratorError
from sds_jax.generators.coarse_to_fine import FieldSchedule
from sds_jax.generators.custom import Representation, load_representation
from sds_jax.rendering.render import RenderOptions
from sds_jax.schema import ConfigError
from sds_jax.settings.background import BackgroundSettings
from sds_jax.settings.camera import CameraSettings
from sds_jax.settings.field import FieldSettings
from sds_jax.settings.loss import ObjectLossSettings
from sds_jax.settings.render import RenderSettings
from sds_jax.settings.shading import ShadingSettings
from sds_jax.training.terms.regularisers import REGULARISERS, Regulariser
from sds_jax.views import cameras, lights

CPU_BLOCK, ACCELERATOR_BLOCK = 4096, 2**18
"""Points of a field that are evaluated at a time: as many as stay in a CPU's cache, or as fit on a GPU."""


def load_custom(name: str, size: int, read: Mapping[str, str]) -> Representation:
  """Loads the user's representation by the name "package.module:function".

  Args:
    name: of the function.
    size: side of the training renders, pixels.
    read: see `load_representation`.

  Raises:
    ConfigError: the representation does not work.
  """
  try:
    return load_representation(name, size, read)
  except GeneratorError as error:
    raise ConfigError(f"config.generator.name={error}") from error


def make_field(settings: FieldSettings) -> fields.Field:
  """Builds the field from its group and the settings common to all fields."""
  values = schema.to_dict(settings)
  network = {name: values.pop(name) for name in fields.FIELDS}[settings.name]
  network.pop("open_levels", None)  # changes over the run: `field_schedule`
  if "variance" in network:
    network["variance"] = _last(network["variance"])  # outside of a step the field is as at the end of the run
  return fields.make_field(**values, **network)


def field_schedule(settings: FieldSettings) -> FieldSchedule:
  """Returns the changes of the field over the run."""
  variance, levels = settings.paper_mlp.variance, settings.hashgrid.open_levels
  return FieldSchedule(
      # A constant variance is part of the field itself.
      variance=variance if settings.name == "paper_mlp" and isinstance(variance, tuple) else None,
      open_levels=levels if settings.name == "hashgrid" and levels != 0.0 else None)


def make_background(settings: BackgroundSettings) -> backgrounds.Background:
  """Builds the background.

  A learnt background has a group of its own name.
  """
  values = schema.to_dict(settings)
  networks = {name: values.pop(name) for name in backgrounds.LEARNT}
  # `plain` and `white` have no group.
  return backgrounds.make_background(**values, **networks.get(settings.name, {}))


def camera_distribution(settings: CameraSettings) -> cameras.CameraDistribution:
  """Returns the distribution of the training cameras, with angles in radians."""
  radians = lambda pair: tuple(math.radians(v) for v in pair)  # noqa: E731
  return cameras.CameraDistribution(
      elevation=radians(settings.elevation_deg), distance=settings.distance, fov_y=radians(settings.fov_deg),
      focal=settings.focal if any(settings.focal) else None, position_jitter=settings.position_jitter,
      relative=settings.relative, look_at_std=settings.target_std, up_std=settings.up_std)


def light_distribution(settings: ShadingSettings) -> lights.LightDistribution:
  """Returns the distribution of lights and shading modes."""
  shaded = settings.lambertian + settings.textureless
  return lights.LightDistribution(
      # The settings give probabilities of a step, the distribution that of textureless within the lit steps.
      distance=settings.distance, shaded=shaded, textureless=settings.textureless / shaded if shaded else 0.0,
      albedo_only=settings.albedo_until, ambient=settings.ambient, diffuse=1.0 - settings.ambient,
      ambient_spread=settings.ambient_spread)


def render_options(settings: RenderSettings, bound: float) -> RenderOptions:
  """Returns the options of the training renders.

  The blocks depend on the backend.
  """
  on_cpu = jax.default_backend() == "cpu"
  block = {-1: CPU_BLOCK if on_cpu else ACCELERATOR_BLOCK, 0: None}.get(settings.block_points, settings.block_points)
  # With a sparse occupancy grid the samples often fit into 3/8 of the budget.
  few = 3 * settings.num_samples // 8 if on_cpu and settings.block_points == -1 and settings.num_samples > 2 else None
  return RenderOptions(bound=bound, candidates=settings.candidates, samples=settings.num_samples, few=few,
                       block_points=block)


def regularisers(settings: ObjectLossSettings) -> Sequence[Regulariser]:
  """Returns the regularisers with their weights.

  Regularisers of weight 0 are computed for the log alone.
  """
  return [Regulariser(name, getattr(settings, name)) for name in REGULARISERS]


def _last(spec: schema.Scheduled) -> float:
  """Returns the value of a scheduled number at the end of the run."""
  return spec[-1][1] if isinstance(spec, tuple) else spec
