"""The folder of a run: its name, whether it can be written to, and the settings stored in it."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax import schema, settings as settings_lib
from sds_jax.io import files


class WorkdirError(ValueError):
  """Raised for a working folder that cannot be used; the message says why and names the remedy."""


class ResumeError(ValueError):
  """Raised when the working folder does not hold the checkpoint that the settings demand."""


def folder_of(chosen: str, name: str, seed: int) -> Path:
  """Returns the folder of a run: `chosen` by the user, or runs/<name>-<seed> if `chosen` is empty."""
  if not chosen:
    return Path("runs") / f"{name}-{seed}"
  folder = Path(chosen)
  # Resolved, because making a/../b would make the folder a, too.
  return Path(os.path.realpath(folder)) if ".." in folder.parts and "\0" not in chosen else folder


def make_folder(folder: Path) -> None:
  """Makes the folder of a run if it is missing, and proves that it can be written to.

  Raises:
    WorkdirError: the folder cannot be made or written to.
  """
  try:
    str(folder).encode()  # some libraries that write there take only names that are text
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
      probe.write(b"0" * 4096)
      probe.flush()
      os.fsync(probe.fileno())
  except (OSError, ValueError) as error:  # the latter for names with a NUL, or that are no text
    raise WorkdirError(f"the folder {folder} cannot be written to ({getattr(error, 'strerror', error)}); "
                       "give another one with --workdir=...") from error


def existing_folder(workdir: str | None, mode: str) -> Path:
  """Returns the folder of an earlier run, for the modes that start from such a folder.

  Raises:
    WorkdirError: no folder was given, or the folder is not that of a run.
  """
  if not workdir:
    raise WorkdirError(f"--mode={mode} needs the folder of a run: --workdir=runs/...")
  folder = Path(workdir)
  if not (folder / "config.json").is_file():
    raise WorkdirError(f"--workdir={workdir} is not the folder of a run: it has no config.json")
  return folder


def store_settings(folder: Path, settings: dict[str, Any], versions: dict[str, str],
                   prior_source: dict[str, str] | None = None) -> None:
  """Writes config.json: all settings, the versions of the libraries, and the source of the prior's files."""
  files.write_json(dict(config=settings, versions=versions, prior_source=prior_source), folder / "config.json")


def stored_settings(folder: Path) -> dict[str, Any]:
  """Returns the settings in config.json as nested dictionaries, as JSON has them.

  Raises:
    WorkdirError: the file cannot be read.
  """
  config = stored_config(folder, {})
  try:
    return schema.to_dict(schema.read(settings_lib.reference(config), config, ranges=False))
  except schema.ConfigError as error:
    raise WorkdirError(f"{folder / 'config.json'} does not have the settings of this version ({error}); "
                       "give another --workdir, or use --config.resume=never to start anew there") from error


def stored_config(folder: Path, overrides: dict[str, Any]) -> ConfigDict:
  """Returns the settings in config.json with the overrides of the command line.

  Raises:
    WorkdirError: the file cannot be read.
    ConfigError: an override is no setting of the stored task.
  """
  try:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    reference = settings_lib.reference(ConfigDict(stored))
    config = schema.to_config(reference)
    _fill(config, stored)
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:  # no JSON, or JSON of another form
    raise WorkdirError(f"{folder / 'config.json'} cannot be read ({error}); was it cut off or changed?") from error
  for name, value in overrides.items():
    schema.check_name(name, reference)  # the file of --config may be of another task
    *groups, last = name.split(".")
    target = config
    for group in groups:
      target = target[group]
    target[last] = value
  return config


def _fill(config: ConfigDict, stored: dict[str, Any]) -> None:
  """Copies values from JSON, whose lists become tuples; unknown names are left to validation."""
  for name, value in stored.items():
    if isinstance(value, dict) and name in config and isinstance(config[name], ConfigDict):
      _fill(config[name], value)
    else:
      config[name] = _tuples(value)


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
