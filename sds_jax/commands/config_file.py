"""The user's file of settings: found and executed once, with errors of one line."""
from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from sds_jax import names, schema, shipped_configs
from sds_jax.schema import ConfigError

_MODULE = "sds_jax_config_file"
"""Name of the user's file as a module."""


class UsageError(ValueError):
  """Raised for a command line that cannot be used.

  The message may have several lines; the command joins them.
  """


def load(specification: str) -> ConfigDict:
  """Executes a file of settings once; returns the settings.

  The settings are those that its function `get_config` returns.

  Args:
    specification: FILE, or FILE:WORDS, which calls get_config(WORDS). FILE may name a settings file that ships.

  Raises:
    ConfigError: the settings raise the error, such as for an unknown recipe.
    UsageError: the file does not exist, the file or its function raises, or the function returns no `ConfigDict`. With
      the environment variable SDS_JAX_TRACEBACK the error of the file itself.
  """
  path, *words = specification.split(":", 1)
  path = shipped_configs.resolve(schema.expand_home(path))
  try:
    config = _execute(path).get_config(*words)
  except ConfigError:
    raise
  except (Exception, SystemExit, GeneratorExit) as error:  # whatever the user's code raises
    if os.environ.get("SDS_JAX_TRACEBACK"):
      raise
    # The earliest error says most, such as a settings error that a library wrapped.
    cause = _first(error, ConfigError)
    if cause is not None:
      raise cause from error
    raise UsageError(f"--config={specification}: {_described(error, path)}") from error
  if isinstance(config, FrozenConfigDict):
    config = ConfigDict(config)  # flags change it
  if not isinstance(config, ConfigDict):
    if inspect.iscoroutine(config):
      config.close()  # otherwise Python warns that nobody has awaited the coroutine
    raise UsageError(f"--config={specification}: get_config returns {type(config).__name__}; it must return a "
                     "ConfigDict, such as sds_jax.settings.defaults('text3d')")
  return config


def _execute(path: str) -> ModuleType:
  if not os.path.isfile(path):
    files = ", ".join(f"configs/{name}.py ({meaning})" for name, meaning in shipped_configs.MEANINGS.items())
    near = names.nearest(Path(path.partition("\0")[0]).stem.lower()[:100], shipped_configs.names())
    raise FileNotFoundError(f"there is no file {path!r}; " + (f"did you mean --config={near}? " if near else "") +
                            f"the files of settings that ship are {files}; a prompt is given as "
                            "--config=configs/text.py --config.prompt=\"a red cube\"")
  # An explicit loader, since without one importlib refuses names that do not end in .py.
  loader = importlib.machinery.SourceFileLoader(_MODULE, path)
  spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[_MODULE] = module  # where dataclasses and pickles of the file look for it
  loader.exec_module(module)
  if not callable(getattr(module, "get_config", None)):
    raise AttributeError(f"{path} has no function get_config: it must return the settings")
  return module


def _described(error: BaseException, path: str) -> str:
  """Returns an error in words, with the line in the user's file.

  The words are the message, preceded by the type unless the type is a plain one.
  """
  name = "" if isinstance(error, (OSError, AttributeError)) else f"{type(error).__name__}: "
  # Only frames of the user's file: the last line of the traceback may lie in a library.
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
  moved = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "sds_jax"
  return (f"{name}{error}" + (f" (line {lines[-1]} of {path})" if lines else "") +
          ("; names that have moved are listed in CHANGELOG.md under \"Moved\": settings and recipes are now in "
           "sds_jax.settings" if moved else ""))


def _first(error: BaseException, kind: type[Exception]) -> Any:
  """Returns the earliest error of a kind that led to `error`, or None."""
  # __context__ and not __cause__: an error raised while another was handled names its cause only with `from`.
  earlier = _first(error.__context__, kind) if error.__context__ else None
  return earlier or (error if isinstance(error, kind) else None)
