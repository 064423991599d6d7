"""The command line: settings and flags as values, every mistake as one error.

`sys.argv` is not read here.

The forms `--config=FILE:WORDS`, `--config FILE`, `--config.a.b=value`, `--config.a.b value` and `--flagfile=FILE` are
legal, with one dash or two. The file of settings is executed exactly once.
"""
from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging  # noqa: F401 (logging defines --verbosity)
from ml_collections import ConfigDict, config_flags

from sds_jax import schema, settings
from sds_jax.commands import config_file, help_page, mistakes
from sds_jax.commands.config_file import UsageError
from sds_jax.schema import ConfigError

MODES = ("train", "export", "render", "evaluate")
"""Legal values of --mode."""

_HINT = ("settings are given as --config=configs/text.py --config.name=value; legal names and types are in "
         "sds_jax/settings")
_LONGEST_NAME = 100
_HELP_FLAGS = {"--help", "-help", "-h", "-?", "--helpfull", "-helpfull", "--helpshort", "--helpxml"}


@dataclasses.dataclass(frozen=True)
class Arguments:
  """The values of a command line.

  Attributes:
    config: the settings of the file of --config, overrides included; not yet validated. None without --config.
    overrides: the settings that were given one by one, dotted name -> value.
    mode: a name in MODES.
    workdir: folder of the run, or None.
    coordinator, num_processes, process_id, distributed: of a job of several processes.
    verbose: whether --verbosity was given.
  """
  config: ConfigDict | None
  overrides: dict[str, Any]
  mode: str
  workdir: str | None
  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  distributed: bool
  verbose: bool


def parse(argv: Sequence[str]) -> Arguments:
  """Reads a command line.

  Without --config the overrides are of the settings that are stored in the folder --workdir.

  Args:
    argv: name of the program and its arguments.

  Raises:
    UsageError: the arguments cannot be read, or the file of settings does not work.
    ConfigError: a name or a value is no setting; names are checked before anything else.
    SystemExit: the command line asks for help, which has been printed.
  """
  # Before the flags are read, because absl would print a help page of its own.
  if asked := set(argv[1:]) & _HELP_FLAGS:
    print(help_page.text(take_config(argv[1:])[0], MODES, everything=bool(asked & {"--helpfull", "-helpfull"})))
    raise SystemExit(0)
  try:
    # Flag files first, since they may hold --config, which is taken out next.
    arguments = flags.FlagValues().read_flags_from_files(_home_expanded(argv[1:]), force_gnu=True)
  except (flags.Error, OSError, ValueError) as error:
    _raise_usage_error(error)
  specification, arguments = take_config(arguments)
  config = None if specification is None else config_file.load(specification)
  base = _stored(take_value(arguments, "workdir")) if config is None else config
  name = take_value(arguments, "config.distillation.estimator")
  if name is not None and isinstance(base.get("distillation"), ConfigDict):  # whose options may be flags, too
    with base.distillation.ignore_type():
      base.distillation.estimator = name
  settings.add_users_options(base)
  reference = settings.reference(base)
  try:
    arguments = joined(arguments, reference)
  except ConfigError as error:
    raise mistakes.of_another_task(error, arguments, base.get("job", "text3d")) from error
  values = _parse_flags([argv[0], *arguments], base, reference)
  if values.mode not in MODES:
    raise UsageError(f"--mode={values.mode} is not legal: it must be one of {', '.join(MODES)}")
  return Arguments(
      config=None if config is None else values.config, overrides=config_flags.get_override_values(values["config"]),
      mode=values.mode, workdir=values.workdir, coordinator=values.coordinator, num_processes=values.num_processes,
      process_id=values.process_id, distributed=values.distributed, verbose=bool(values["verbosity"].present))


def _home_expanded(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments with `~` expanded in the name of a flag file.

  No shell expands `~` behind `=`.
  """
  return [re.sub("^(--?flagfile=)(~.*)", lambda m: m[1] + schema.expand_home(m[2]), argument, flags=re.DOTALL)
          for argument in arguments]


def take_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
  """Returns the last value of --config, or None, and the arguments without --config.

  Raises:
    UsageError: --config has no value.

  >>> take_config(["--config=a.py", "--mode=train", "-config", "b.py:sd15"])
  ('b.py:sd15', ['--mode=train'])
  """
  value, rest, todo = None, [], list(arguments)
  while todo:
    argument = todo.pop(0)
    if argument == "--":
      return value, [*rest, argument, *todo]
    if argument in ("-config", "--config"):
      if not todo:
        raise UsageError(f"--config has no value; {_HINT}")
      value = todo.pop(0)
    elif re.match("--?config=", argument):
      value = argument.split("=", 1)[1]
    else:
      rest.append(argument)
  return value, rest


def take_value(arguments: Sequence[str], name: str) -> str | None:
  """Returns the last value of a flag among the arguments, or None.

  >>> take_value(["--workdir=a", "--workdir", "b"], "workdir")
  'b'
  """
  value = None
  for argument, following in zip(arguments, [*arguments[1:], None]):
    if re.fullmatch(f"--?{re.escape(name)}", argument):
      value = following
    elif re.match(f"--?{re.escape(name)}=", argument):
      value = argument.split("=", 1)[1]
  return value


def joined(arguments: Sequence[str], reference: Any) -> list[str]:
  """Returns the arguments with `--config.a value` as `--config.a=value`.

  Only settings whose value may be of several types are joined. Their flags would take no separate value, since True and
  False are legal for their parser.

  Raises:
    ConfigError: an argument names no setting of `reference`, or a group of settings.
    UsageError: an argument is a flag of a name longer than _LONGEST_NAME.
  """
  done, todo = [], list(arguments)
  while todo:
    argument = todo.pop(0)
    match = re.fullmatch(r"--?(no)?config\.([^=]*)(=.*)?", argument, re.DOTALL)
    if argument == "--":
      return [*done, argument, *todo]
    if match:
      schema.check_name(match[2], reference)
      if mistakes.is_group(match[2], reference):
        raise ConfigError(mistakes.value_of_group(match[2], (match[3] or " ")[1:], reference))
    elif len(name := argument.partition("=")[0]) > _LONGEST_NAME and name.startswith("-"):
      # absl looks for similar names by recursion, one call for each character.
      raise UsageError(mistakes.unknown_flag(name.lstrip("-")[:_LONGEST_NAME] + "...", reference, ()))
    apart = match and not match[1] and match[3] is None and todo and not todo[0].startswith("--")
    if apart and _takes_several_types(reference, match[2]):
      argument = f"{argument}={todo.pop(0)}"
    done.append(argument)
  return done


def _takes_several_types(reference: Any, path: str) -> bool:
  field = mistakes.field_at(path, reference)
  return "legal" in field.metadata and field.metadata["legal"].loose


def _stored(workdir: str | None) -> ConfigDict:
  """Returns defaults of the task and estimator of the run in a folder.

  Without a run the defaults are those of text-to-3D.
  """
  try:
    path = Path(schema.expand_home(workdir or "")) / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "{}")["config"]
    task, estimator = stored["job"], stored["distillation"]["estimator"]
    config = settings.defaults(task)
    config.distillation.estimator = estimator
    return config
  except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no run, or a damaged one, reported later
    return settings.defaults()


def _parse_flags(argv: list[str], config: ConfigDict, reference: Any) -> flags.FlagValues:
  """Returns all flags with their values.

  `config` gets the overrides; `reference` is the tree of settings of `config`.
  """
  # A set of its own and not the global one, so that a process can parse twice.
  values = flags.FlagValues()
  flags.DEFINE_string("mode", "train", "", flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_string("coordinator", None, "", flag_values=values)
  flags.DEFINE_integer("num_processes", None, "", flag_values=values)
  flags.DEFINE_integer("process_id", None, "", flag_values=values)
  flags.DEFINE_bool("distributed", False, "", flag_values=values)
  for name in set(flags.FLAGS) - set(values):  # absl's own, such as --verbosity; short names come with the long ones
    if flags.FLAGS[name].name == name:
      values[name] = flags.FLAGS[name]
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    rest = values(argv)
  except ConfigError:
    raise
  except flags.UnrecognizedFlagError as error:
    raise UsageError(mistakes.unknown_flag(error.flagname, reference, list(values))) from error
  except Exception as error:  # ml_collections raises many kinds for values that cannot be read
    if line := mistakes.illegal_value(str(error), reference):
      raise UsageError(f"{line} ({_HINT})") from error
    schema.read(reference, config, ranges=False)  # the file itself may lack a group
    _raise_usage_error(error)
  if len(rest) > 1:
    # With a prompt given already, a stray word is hardly another prompt.
    given = any(re.match(r"--?config\.(prompt|negative_prompt|image)\b", argument) for argument in argv)
    raise UsageError(mistakes.unexpected(rest[1:], reference, list(values), MODES, given))
  # absl's logging reads the global flags and warns while they count as not parsed.
  flags.FLAGS.mark_as_parsed()
  return values


def _raise_usage_error(error: Exception) -> NoReturn:
  if os.environ.get("SDS_JAX_TRACEBACK"):
    raise error
  name = "" if isinstance(error, (flags.Error, OSError, ValueError)) else f"{type(error).__name__}: "
  raise UsageError(f"{name}{error} ({_HINT})") from error
