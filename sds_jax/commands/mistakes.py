"""What was probably meant by a mistake on the command line, as one line."""
from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sds_jax import names, schema, settings
from sds_jax.schema import ConfigError

_PHOTOS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".ppm"}
_FILES = {"text3d": "configs/text.py", "image3d": "configs/image.py", "image2d": "configs/image2d.py"}
_OWN_FLAGS = ("config", "mode", "workdir", "flagfile", "coordinator", "num_processes", "process_id", "distributed",
              "verbosity", "help")
# absl gives the name and the value in the text of its error only.
_ABSL = re.compile(r"flag --?(?:no)?config\.([\w.]+)=(.*?): ", re.DOTALL)


def unknown_flag(name: str, reference: Any, known: Sequence[str]) -> str:
  """Returns the error of a flag that does not exist.

  The error names the nearest flag or setting.

  Args:
    name: of the flag, without dashes.
    reference: the tree of settings.
    known: names of the flags.
  """
  meant = _meant(name, reference, known)
  hint = f"did you mean {meant}? Settings" if meant else "--help lists flags and settings, and settings"
  return f"--{name} is no flag; {hint} are given as --config.name=value"


def unexpected(words: Sequence[str], reference: Any, known: Sequence[str], modes: Sequence[str],
               has_prompt: bool) -> str:
  """Returns the error of arguments that are no flags.

  The error names the flag that was probably meant.

  Args:
    words: the arguments.
    reference: the tree of settings.
    known: names of the flags.
    modes: values of --mode.
    has_prompt: whether a prompt or a photo is given by its setting.
  """
  word, error = words[0], f"unexpected argument {_cut(words[0])!r}; "
  name, equals, value = word.partition("=")
  if equals and re.fullmatch(r"[\w.-]+", name):
    setting = name.removeprefix("config.")
    exact = setting in _paths(reference)
    meant = f"--config.{setting}" if exact else _meant(name, reference, known)
    if meant:
      return f"{error}did you mean {meant}={shlex.quote(value)}?"
  if word in modes:
    return f"{error}did you mean --mode={word}?"
  path = Path(word)
  # Longer words and NUL are no paths: the file system would raise an error.
  if "\0" not in word and len(word) < 1000:
    if path.suffix == ".py":
      return f"{error}did you mean --config={word}?"
    if path.suffix.lower() in _PHOTOS:
      return f"{error}a photo is given as --config={_FILES['image3d']} --config.image={shlex.quote(word)}"
    if (path / "config.json").is_file():
      return f"{error}the folder of a run is given as --workdir={shlex.quote(word)}"
  if has_prompt or word.startswith("-"):
    return f"{error}settings are given as --config.name=value, a prompt with spaces in quotes"
  prompt = " ".join(words)
  return (f"{error}a prompt is given in quotes as --config={_FILES['text3d']} --config.prompt="
          f"{shlex.quote(prompt if len(prompt) <= 200 else prompt[:200] + '...')}; --help lists the settings")


def illegal_value(error: str, reference: Any) -> str | None:
  """Returns the error of a value that the flags cannot read.

  The error names the legal values. For another error the result is None.
  """
  match = _ABSL.match(error)
  field = match and field_at(match[1], reference)
  if not field:
    return None
  if "legal" not in field.metadata:
    return value_of_group(match[1], match[2], reference)
  return f"config.{match[1]}={_cut(match[2])!r} is not legal: it must be {field.metadata['legal'].describe()}"


def is_group(path: str, reference: Any) -> bool:
  """Returns whether a dotted path is that of a group of settings."""
  field = field_at(path, reference)
  return field is not None and "legal" not in field.metadata


def value_of_group(path: str, value: str, reference: Any) -> str:
  """Returns the error of a value for a group of settings, which has none.

  Args:
    path: of the group, dotted.
    value: as typed.
    reference: the tree of settings.
  """
  within = ", ".join(name for name in _paths(reference) if name.rpartition(".")[0] == path)
  return f"config.{path}={_cut(value)!r} is not legal: config.{path} is a group of settings; known here: {within}"


def _cut(value: str) -> str:
  # So that the error stays one readable line.
  return value if len(value) <= 200 else value[:200] + "..."


def of_another_task(error: ConfigError, arguments: Sequence[str], task: str) -> ConfigError:
  """Returns the error of an unknown setting.

  The error names the file of another task that has a setting of this name.
  """
  for argument in arguments:
    match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
    if match and str(error).startswith(f"config.{match[1]} is not a setting"):
      others = [other for other in settings.TREES if other != task and match[1] in _paths(settings.TREES[other]())]
      if others:
        return ConfigError(f"{str(error).partition(';')[0]} of this task; it is one of --config={_FILES[others[0]]}")
  return error


def _meant(name: str, reference: Any, known: Sequence[str]) -> str | None:
  """Returns the flag or setting that a name probably meant, or None."""
  setting, paths = name.removeprefix("config.").replace("-", "_"), _paths(reference)
  found = setting if setting in paths else names.habitual(setting, paths)
  # Before similar names: an exact name of another task is the better guess.
  if not found and (others := [task for task, tree in settings.TREES.items() if setting in _paths(tree())]):
    return f"--config={_FILES[others[0]]} --config.{setting}"
  if not found and (near := names.nearest(setting, _OWN_FLAGS)):
    return f"--{near}"
  found = found or names.nearest_setting(setting, paths)
  return found and (f"--{found}" if found in known else f"--config.{found}")


def field_at(path: str, reference: Any) -> dataclasses.Field | None:
  """Returns the field of a dotted path, of a setting or a group; None without such a field."""
  field = None
  for name in path.split("."):
    known = {field.name: field for field in dataclasses.fields(reference)} if schema.is_group(reference) else {}
    if name not in known:
      return None
    field, reference = known[name], getattr(reference, name)
  return field


def _paths(reference: Any) -> list[str]:
  return list(_walk(reference))


def _walk(reference: Any) -> Iterator[str]:
  return (row.name for row in schema.describe(reference))
