"""Field and background of a config, and the field as it is at a moment of the run."""
from __future__ import annotations

import ml_collections

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.fields import background as backgrounds, field as fields, hashgrid
from sds_jax.training.config import scalar_spec
from sds_jax.types import Array, FieldFn, Params


def make_field(config: ml_collections.FrozenConfigDict) -> fields.Field:
  """The field of `config.field`: its own group of settings (`field.mlp`, say) and those that all fields share."""
  settings = config.field.to_dict()
  network = {name: settings.pop(name) for name in fields.FIELDS}[settings["name"]]
  network.pop("open_levels", None)  # what changes over the run is for `field_now`
  if "variance" in network:
    network["variance"] = _last(network["variance"])  # outside of a step the field is as it will be
  return fields.make_field(**settings, **network)


def make_background(config: ml_collections.FrozenConfigDict) -> backgrounds.Background:
  """The background of `config.background`, with the group of settings of its own name where it is learnt."""
  settings = config.background.to_dict()
  networks = {name: settings.pop(name) for name in backgrounds.LEARNT}
  return backgrounds.make_background(**settings, **networks.get(settings["name"], {}))


def field_now(field: fields.Field, config: ml_collections.FrozenConfigDict, params: Params,
              progress: Array) -> tuple[FieldFn, Params]:
  """The field as a step sees it, coarse to fine: the blur of `paper_mlp`, the open levels of `hashgrid`.

  Args:
    params: of the field.
    progress: fraction of the run that is done, [] float32.

  Returns:
    what to render, and its parameters; just (field.apply, params) where nothing changes over the run.
  """
  name = config.field.name
  blur, levels = scalar_spec(config.field.paper_mlp.variance), scalar_spec(config.field.hashgrid.open_levels)
  if name == "paper_mlp" and isinstance(blur, tuple):
    variance = schedule_value(blur, progress)
    return lambda p, points: field.apply(p, points, variance), params
  if name == "hashgrid" and levels != 0.0:
    return field.apply, hashgrid.open_levels(params, schedule_value(levels, progress))
  return field.apply, params


def _last(spec: tuple) -> float:
  """The value of a scheduled scalar at its end."""
  return spec[0] if len(spec) == 1 else spec[-1][1]
