"""Values for the settings of `distillation` and `camera` that are left open."""
from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from sds_jax.diffusion import estimators
from sds_jax.priors import sources
from sds_jax.schema import AUTO, ConfigError
from sds_jax.settings.common import ObjectSettings, RunSettings


def find_estimator(name: str) -> estimators.Estimator:
  """Returns the record of an estimator; raises ConfigError for an unknown name."""
  try:
    return estimators.find(name)
  except ValueError as error:
    raise ConfigError(f"config.distillation.estimator={name!r} is not legal: {error}") from error


def resolve(settings: RunSettings) -> RunSettings:
  """Returns the settings with nothing left open in `distillation` and `camera`.

  Raises:
    ConfigError: the estimator cannot be imported, or config.json of the run `distillation.source` cannot be read.
    CheckpointError: the prior's model_index.json cannot be read.
  """
  d, prior = settings.distillation, settings.prior
  # Asked before anything is fetched: the defaults of an estimator depend on the prior's size.
  small = sources.is_small(prior.path or prior.name)
  d = estimators.fill(d, find_estimator(d.estimator), small, photo=settings.job == "image3d")
  if isinstance(settings, ObjectSettings) and settings.camera.group == AUTO:
    group = sources.views_of(prior.path or prior.name)
    settings = dataclasses.replace(settings, camera=dataclasses.replace(settings.camera, group=group))
  if d.source and not d.source_prompt and os.path.isfile(Path(d.source) / "config.json"):
    d = dataclasses.replace(d, source_prompt=_stored_prompt(d.source))
  return dataclasses.replace(settings, distillation=d)


def _stored_prompt(folder: str) -> str:
  """Returns the prompt in the config.json of a run."""
  path = Path(folder) / "config.json"
  try:
    prompt = json.loads(path.read_text(encoding="utf-8"))["config"]["prompt"]
  except (ValueError, KeyError, TypeError, OSError) as error:  # no JSON, or JSON of another form
    raise ConfigError(f"config.distillation.source={folder!r}: {path} cannot be read ({error}); was it cut off or "
                      "changed?") from error
  if not isinstance(prompt, str):
    raise ConfigError(f"config.distillation.source={folder!r}: {path} holds no prompt; was it changed?")
  return prompt
