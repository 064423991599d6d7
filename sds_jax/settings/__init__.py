"""Typed settings: a tree of frozen dataclasses for each task, checked before anything is loaded.

  config = settings.defaults("text3d")         # a ConfigDict, for config files and flags
  config.prompt = "a red cube"
  checked = settings.validate(config)          # a settings.text3d.Text3D
"""
from sds_jax.schema import ConfigError, check_name
from sds_jax.settings.reference_page import reference_markdown
from sds_jax.settings.trees import TREES, add_users_options, defaults, reference, validate

__all__ = ["TREES", "ConfigError", "add_users_options", "check_name", "defaults", "reference", "reference_markdown",
           "validate"]
