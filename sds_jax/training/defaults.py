"""The jobs that a config can be of, and the tree of settings that each of them has."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from sds_jax.training import config as config_lib, image2d_config, image3d_config
from sds_jax.training.checks import ConfigError

DEFAULTS: dict[str, Callable[[], ConfigDict]] = {
    "text3d": config_lib.default, "image2d": image2d_config.default, "image3d": image3d_config.default}
"""`config.job` -> all settings of the job with their defaults."""


def of(config: Any) -> ConfigDict:
  """The defaults of a config's job: a ConfigDict, or a dictionary; without a job it is text-to-3D.

  Raises:
    ConfigError: there is no such job.
  """
  job = config.get("job", "text3d")
  if job not in DEFAULTS:
    raise ConfigError(f"config.job={job!r} is not legal: it must be one of {', '.join(DEFAULTS)}, and comes with the "
                      "file of --config; leave it out")
  return DEFAULTS[job]()
