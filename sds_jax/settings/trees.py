"""The trees of settings by task, and the check of all settings before anything is loaded."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sds_jax import schema
from sds_jax.diffusion import estimators
from sds_jax.schema import ConfigError
from sds_jax.settings import resolve
from sds_jax.settings.common import RunSettings
from sds_jax.settings.distillation import with_estimator
from sds_jax.settings.image2d import Image2D
from sds_jax.settings.image3d import Image3D
from sds_jax.settings.text3d import Text3D

TREES: dict[str, type[RunSettings]] = {"text3d": Text3D, "image3d": Image3D, "image2d": Image2D}
"""Value of the setting `job` -> tree of settings. TREES[job]() has the defaults."""


def defaults(task: str = "text3d") -> ConfigDict:
  """Returns the defaults of a task, for config files and flags.

  The `ConfigDict` is unlocked.
  """
  return schema.to_config(TREES[task]())


def reference(config: Mapping[str, Any] | ConfigDict) -> RunSettings:
  """Returns the tree of settings that a config is of, with its defaults.

  Where `distillation.estimator` is an estimator of the user's own, package.module:NAME, the tree has the group of its
  options.

  Args:
    config: settings; without `job` they are of text-to-3D.

  Raises:
    ConfigError: `job` names no task, or the user's estimator cannot be imported.
  """
  task = config.get("job", "text3d")
  if task not in TREES:
    raise ConfigError(f"config.job={task!r} is not legal: it must be one of {', '.join(TREES)}, and comes with the "
                      "file of --config; leave it out")
  settings = TREES[task]()
  if record := _users_estimator(config):
    settings = dataclasses.replace(settings, distillation=with_estimator(settings.distillation, record))
  return settings


def validate(config: ConfigDict) -> RunSettings:
  """Checks all settings and returns them as a frozen tree.

  Nothing of `distillation` is left open in the tree.

  Raises:
    ConfigError: the first mistake: a name, a type, a range, or a contradiction between settings.
    CheckpointError: the prior's model_index.json cannot be read.
  """
  # A copy, since the options of the user's estimator are added to it.
  config = ConfigDict(config).copy_and_resolve_references()
  add_users_options(config)
  # Relations come last, because they compare values that `resolve` fills in.
  settings = resolve.resolve(schema.read(reference(config), config, relations=False))
  schema.check_relations(settings)
  return settings


def add_users_options(config: ConfigDict) -> None:
  """Adds the options of the user's own estimator to a config that lacks them.

  The estimator's name has the form package.module:NAME.

  Raises:
    ConfigError: the estimator cannot be imported.
  """
  record = _users_estimator(config)
  if record and dataclasses.fields(record.options) and record.name not in config.distillation:
    with config.unlocked():
      config.distillation[record.name] = schema.to_config(record.options())


def _users_estimator(config: Mapping[str, Any] | ConfigDict) -> estimators.Estimator | None:
  group = config.get("distillation")
  name = group.get("estimator") if isinstance(group, (Mapping, ConfigDict)) else None
  return resolve.find_estimator(name) if isinstance(name, str) and ":" in name else None
