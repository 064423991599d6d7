"""The folder of a run: its name, its files, and the settings stored in it."""
from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax import schema, settings as settings_lib
from sds_jax.io import files, lock, run_files
from sds_jax.io.run_files import Layout, RunFiles

LAYOUT: Layout = {
    "config.json": None, "metrics.jsonl": None, "timings.json": None, "checkpoints": run_files.CHECKPOINTS,
    "progress": {re.compile(r"(guidance_)?\d{6,}\.png"): None}}
"""Names that every run writes in its folder; `Task.outputs` adds the names of its task."""


class WorkdirError(ValueError):
  """Raised for a working folder that cannot be used.

  The message says why and names the remedy.
  """


class ResumeError(ValueError):
  """Raised when the working folder does not hold the checkpoint that the settings demand."""


def folder_of(chosen: str, name: str, seed: int) -> Path:
  """Returns the folder of a run.

  The folder is `chosen` by the user, or runs/<name>-<seed> if `chosen` is empty.

  Raises:
    ConfigError: `chosen` begins with the home folder of nobody.
    WorkdirError: `chosen` is no name of a folder.
  """
  if not chosen:
    return Path("runs") / f"{name}-{seed}"
  folder = Path(schema.expand_home(chosen))
  try:
    str(folder).encode()  # some libraries that write there take only names that are text
    os.path.realpath(folder)
  except (OSError, ValueError) as error:  # the latter for names with a NUL, or that are no text
    raise _unwritable(folder, error) from error
  # Resolved, because making a/../b would make the folder a, too.
  return Path(os.path.realpath(folder)) if ".." in folder.parts and "\0" not in chosen else folder


def make_folder(folder: Path) -> None:
  """Makes the folder of a run if it is missing.

  The folder is proven to be writable.

  Raises:
    WorkdirError: the folder cannot be made or written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
      # A full disk shows only when bytes are written and flushed.
      probe.write(b"0" * 4096)
      probe.flush()
      os.fsync(probe.fileno())
  except (OSError, ValueError) as error:
    raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: Exception) -> WorkdirError:
  return WorkdirError(f"the folder {folder} cannot be written to ({getattr(error, 'strerror', error)}); give another "
                      "one with --workdir=...")


def existing_folder(workdir: str | None, mode: str) -> Path:
  """Returns the folder of an earlier run, for modes that start from one.

  Raises:
    WorkdirError: no folder was given, or the folder is not that of a run.
  """
  if not workdir:
    raise WorkdirError(f"--mode={mode} needs the folder of a run: --workdir=runs/...")
  folder = Path(schema.expand_home(workdir))
  if not (folder / "config.json").is_file():
    raise WorkdirError(f"--workdir={workdir} is not the folder of a run: it has no config.json")
  return folder


def is_locked(folder: Path) -> bool:
  """Returns whether a folder has a lock, held or not."""
  return os.path.lexists(folder / lock.FILE_NAME)


def check_files(folder: Path, layout: Layout, user_files: Mapping[str, str]) -> RunFiles:
  """Raises if a file that no run has written is where a run would write.

  Nothing is changed.

  Args:
    folder: of the run; need not exist.
    layout: names that the run may write.
    user_files: {setting: file that the run reads}.

  Returns:
    The record of the folder, which is empty in a folder that was written before there were records.

  Raises:
    FileInTheWayError: such a file, folder or link is there.
    WorkdirError: the run would overwrite one of the user's files, which an earlier run has written.
  """
  record = RunFiles(folder)
  # A run from before there were records is adopted later, under the lock of the folder.
  if record.exists or not _written_before_records(folder):
    record.check(layout)
  for setting, path in user_files.items():
    place = Path(os.path.realpath(path))
    if place.is_relative_to(record.folder) and run_files.is_in(layout, place.relative_to(record.folder)):
      raise WorkdirError(f"config.{setting}={path!r} is a file that a run in {folder} writes anew: copy it to another "
                         "folder, or give another --workdir")
  return record


@contextlib.contextmanager
def hold(folder: Path, layout: Layout, job: str, user_files: Mapping[str, str]) -> Iterator[None]:
  """Locks the folder of a run and records the files written there.

  Lock and record end with the block.

  Args:
    folder: exists.
    layout: names that the run may write.
    job: value of the setting `job`.
    user_files: {setting: file that the run reads}.

  Raises:
    LockedError: another run holds the lock.
    FileInTheWayError, WorkdirError: see `check_files`.
  """
  with lock.hold(folder):
    record = check_files(folder, layout, user_files)
    if not record.exists and _written_before_records(folder):
      # The names end in the host's name: events of other hosts may be anybody's.
      host = re.escape(socket.gethostname().casefold())
      events = {re.compile(rf"events\.out\.tfevents\.\d{{10}}\.{host}"): None}
      # Of a run of another task only the files that every run writes are known.
      record.adopt({**(layout if _stored_job(folder) == job else LAYOUT), **events})
      record.check(layout)
    with run_files.recording(record):
      yield


def _written_before_records(folder: Path) -> bool:
  """Returns whether a folder without record is that of a run.

  The config.json of a run holds the settings of a run.

  The settings may also be missing beside whole checkpoints, which hold them, too.
  """
  if os.path.lexists(folder / "config.json"):
    return _stored_job(folder) is not None
  return any(_settings_of(path).keys() >= {"about"} for path in folder.glob("checkpoints/*/record/record.json"))


def _stored_job(folder: Path) -> str | None:
  config = _settings_of(folder / "config.json").get("config")
  wanted = {"prompt", "seed", "prior", "distillation", "training"}
  return config.get("job", "text3d") if isinstance(config, dict) and wanted <= config.keys() else None


def _settings_of(path: Path) -> dict[str, Any]:
  try:
    data = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else {}
  except (OSError, ValueError, RecursionError):
    return {}
  # Damage is reported where the settings are used, not here.
  return data if isinstance(data, dict) else {}


def store_settings(folder: Path, settings: dict[str, Any], versions: dict[str, str],
                   prior_source: dict[str, str] | None = None) -> None:
  """Writes config.json.

  The file has all settings, the versions of the libraries, and the source of the prior's files.
  """
  files.write_json(dict(config=settings, versions=versions, prior_source=prior_source), folder / "config.json")


def stored_settings(folder: Path) -> dict[str, Any]:
  """Returns the settings in config.json as nested dictionaries.

  Raises:
    WorkdirError: the file cannot be read.
  """
  return _in_todays_form(stored_config(folder, {}), folder / "config.json")


def settings_of_checkpoint(stored: dict[str, Any], folder: Path) -> dict[str, Any]:
  """Returns the settings in a checkpoint's metadata, in the form of `stored_settings`.

  Raises:
    WorkdirError: they are not the settings of this version.
  """
  config = schema.to_config(settings_lib.reference(ConfigDict(stored)))
  _fill(config, stored)
  return _in_todays_form(config, folder / "checkpoints")


def _in_todays_form(config: ConfigDict, where: Path) -> dict[str, Any]:
  try:
    return schema.to_dict(schema.read(settings_lib.reference(config), config, ranges=False))
  except schema.ConfigError as error:
    raise WorkdirError(f"{where} does not have the settings of this version ({error}); "
                       "give another --workdir, or use --config.resume=never to start anew there") from error


def stored_config(folder: Path, overrides: dict[str, Any]) -> ConfigDict:
  """Returns the settings in config.json with the overrides of the command line.

  Raises:
    WorkdirError: the file cannot be read, or its task or estimator is not installed.
    ConfigError: an override is no setting of the stored task.
  """
  try:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    reference = settings_lib.reference(ConfigDict(stored))
    config = schema.to_config(reference)
    _fill(config, stored)
  except schema.ConfigError as error:  # whole, but of a task or an estimator that there is not here
    raise WorkdirError(f"{folder / 'config.json'}: {error}") from error
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
  """Copies values from JSON, whose lists become tuples.

  Unknown names are left to validation.
  """
  for name, value in stored.items():
    if isinstance(value, dict) and name in config and isinstance(config[name], ConfigDict):
      _fill(config[name], value)
    else:
      config[name] = _tuples(value)


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
