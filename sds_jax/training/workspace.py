"""The folder of a run: where it is, whether it can be used, and the settings that were stored in it."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from sds_jax.io import files
from sds_jax.training import defaults


class WorkdirError(ValueError):
  """A working folder that cannot be used; the message says why and what to do."""


class ResumeError(ValueError):
  """The working folder does not hold what the settings ask to go on from."""


def name_of(config: ml_collections.FrozenConfigDict, workdir: str | None) -> Path:
  """The folder of a run: `--workdir` goes before `config.workdir`.

  Where both are empty it is runs/<prompt>-<seed>, for pictures runs/<prompt>-<generator>-<seed>, for a file of
  prompts or a picture of an object runs/<its name>-<seed>.
  """
  chosen = workdir or config.workdir
  if not chosen and config.job == "text3d" and config.prompts_file:
    return Path("runs") / f"{files.prompt_slug(Path(config.prompts_file).stem)}-{config.seed}"
  if not chosen and config.job == "image3d":
    return Path("runs") / f"{files.prompt_slug(Path(config.image).stem)}-{config.seed}"
  made_by = f"-{files.prompt_slug(config.generator.name)}" if config.job == "image2d" else ""
  if not chosen:
    return Path("runs") / f"{files.prompt_slug(config.prompt)}{made_by}-{config.seed}"
  folder = Path(chosen)
  # Without the way there: to make a/../b would make a folder a, too.
  return Path(os.path.realpath(folder)) if ".." in folder.parts and "\0" not in chosen else folder


def make(folder: Path) -> None:
  """Make the folder of a run if need be, and prove that it can be written to.

  Raises:
    WorkdirError: it cannot.
  """
  try:
    str(folder).encode()  # some of those that write there take only names that are text
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
      probe.write(b"0" * 4096)
      probe.flush()
      os.fsync(probe.fileno())
  except (OSError, ValueError) as error:  # the latter for names with a NUL, or that are no text
    raise WorkdirError(f"the folder {folder} cannot be written to ({getattr(error, 'strerror', error)}); "
                       "give another one with --workdir=...") from error


def existing(workdir: str | None, mode: str) -> Path:
  """The folder of an earlier run, for the modes that start from one.

  Raises:
    WorkdirError: no folder was given, or it is not one of a run.
  """
  if not workdir:
    raise WorkdirError(f"--mode={mode} needs the folder of a run: --workdir=runs/...")
  folder = Path(workdir)
  if not (folder / "config.json").is_file():
    raise WorkdirError(f"--workdir={workdir} is not the folder of a run: it has no config.json")
  return folder


def store_config(folder: Path, config: ml_collections.FrozenConfigDict, versions: dict[str, str],
                 prior_source: dict[str, str] | None = None) -> None:
  """Write config.json: all settings, and what they were run with; `prior_source` is that of `Prior.source`."""
  files.write_json(dict(config=config.to_dict(), versions=versions, prior_source=prior_source), folder / "config.json")


def stored_config(folder: Path, overrides: dict[str, Any]) -> ConfigDict:
  """The settings in config.json with those of the command line put over them.

  Raises:
    WorkdirError: the file cannot be read.
  """
  try:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    config = defaults.of(stored)
    _fill(config, stored)
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:  # no JSON, or JSON of another form
    raise WorkdirError(f"{folder / 'config.json'} cannot be read ({error}); was it cut off or changed?") from error
  for name, value in overrides.items():
    *groups, last = name.split(".")
    target = config
    for group in groups:
      target = target[group]
    target[last] = value
  return config


def _fill(config: ConfigDict, stored: dict[str, Any]) -> None:
  """Values from JSON, where tuples have become lists; names that are not settings are left to `validate`."""
  for name, value in stored.items():
    if isinstance(value, dict) and name in config and isinstance(config[name], ConfigDict):
      _fill(config[name], value)
    else:
      config[name] = _tuples(value)


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
