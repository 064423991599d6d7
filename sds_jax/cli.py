"""The command: flags, checks, one call for each mode; every mistake of the user's ends in one line and status 2."""
from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sds_jax import shipped_configs

EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 2, 3, 130
MODES = ("train", "export", "render", "evaluate")


def main() -> None:
  """Entry point of `run.py`."""
  started = time.perf_counter()
  sys.argv[1:] = [_with_shipped_config(argument) for argument in sys.argv[1:]]
  try:
    config = config_flags.DEFINE_config_file("config", None, "settings, such as configs/text.py")
  except flags.Error as error:  # it looks at the arguments at once, also at those in a --flagfile
    _fail(error)
  mode = flags.DEFINE_string("mode", "train", f"one of {', '.join(MODES)}; all but train need the --workdir of a run")
  workdir = flags.DEFINE_string("workdir", None, "folder of the run; runs/<prompt or picture>-<seed> where not given")
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a job of several processes")
  flags.DEFINE_integer("num_processes", None, "how many processes there are, with --coordinator")
  flags.DEFINE_integer("process_id", None, "which of them this one is, from 0 on")
  flags.DEFINE_bool("distributed", False, "ask the cluster who the other processes are (Google Cloud TPU slices)")
  app.run(lambda argv: _run(config.value, mode.value, workdir.value, started), flags_parser=_parse)


def _with_shipped_config(argument: str) -> str:
  flag, *given = argument.split("=", 1)
  if not given or flag not in ("-config", "--config"):
    return argument
  path, *words = given[0].split(":", 1)
  return f"{flag}=" + ":".join([shipped_configs.resolve(path), *words])


def _fail(error: Exception | str, status: int = EXIT_MISTAKE) -> None:
  text = " ".join(str(error).split())
  # What a terminal would obey or not show (escape sequences, marks that turn the direction) is told, not done.
  print("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
  _leave(status)


def _leave(status: int) -> None:
  """End the process; of several that are at work together at once, for they would wait for each other."""
  from sds_jax import hosts
  hosts.exit_now(status)
  sys.exit(status)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with ml_collections' errors turned into one line that names the setting."""
  from sds_jax.training.validation import ConfigError, check_name
  try:
    reference = _reference(argv)
    for argument in argv[1:]:
      name = argument.lstrip("-").removeprefix("no" if argument.lstrip("-").startswith("noconfig.") else "")
      if reference is not None and argument.startswith("-") and name.startswith("config."):
        check_name(name.split("=")[0].removeprefix("config."), reference)
    rest = flags.FLAGS(argv)
  except Exception as error:  # whatever the file of settings raises, which is the user's own code
    if os.environ.get("SDS_JAX_TRACEBACK"):
      raise
    name = "" if isinstance(error, (flags.Error, OSError, ValueError)) else f"{type(error).__name__}: "
    _fail(_innermost(error, ConfigError) or
          f"{name}{error} (settings are given as --config=configs/text.py --config.name=value; legal names and types "
          "are in sds_jax/training/config.py, image2d_config.py and image3d_config.py)")
  if len(rest) > 1:
    _fail(f"unexpected argument {rest[1]!r}; settings are given as --config.name=value, a prompt with spaces in quotes")
  return rest


def _reference(argv: list[str]) -> ConfigDict | None:
  """All settings of the job that the file of --config is of; None where it cannot be run, which the flags will tell."""
  from sds_jax.training import defaults
  values = [given.split("=", 1)[1] if "=" in given else following for given, following in zip(argv, [*argv[1:], ""])
            if given.startswith("-") and given.lstrip("-").split("=")[0] == "config"]
  if not values:
    return defaults.of({})
  path, *argument = values[-1].split(":", 1)
  try:
    return defaults.of(runpy.run_path(path)["get_config"](*argument))
  except Exception:  # whatever the file raises it raises again when the flags run it
    return None


def _innermost(error: BaseException, kind: type[Exception]) -> Exception | None:
  """The first error of this kind that led to `error`; ml_collections puts its traceback into the message of others."""
  earlier = _innermost(error.__context__, kind) if error.__context__ else None
  return earlier or (error if isinstance(error, kind) else None)


def _run(config: ConfigDict | None, mode: str, workdir: str | None, started: float) -> None:
  """Check everything, then do what `mode` says."""
  from sds_jax import hosts
  from sds_jax.io import resource_errors, lock
  from sds_jax.io.files import DamagedFileError
  from sds_jax.priors.loading.decoding import PictureError
  from sds_jax.priors.loading.files import CheckpointError
  from sds_jax.training import validation, workspace
  from sds_jax.training.divergence import Diverged
  from sds_jax.training.loop import Interrupted
  from sds_jax.training.resume import ResumeError
  if not flags.FLAGS["verbosity"].present:
    # Orbax tells of every file, and of a failed write several times with tracebacks before it raises the error.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _without_stragglers(sys.unraisablehook)
  folder, job, given = None, "text3d", {}
  mistakes = (validation.ConfigError, workspace.WorkdirError, CheckpointError, ResumeError, DamagedFileError,
              lock.LockedError, hosts.HostError, PictureError)
  held = contextlib.ExitStack()
  try:
    if mode not in MODES:
      raise validation.ConfigError(f"--mode={mode} is not legal: it must be one of {', '.join(MODES)}")
    if mode == "train":
      if config is None:
        raise validation.ConfigError("no settings given: say --config=configs/text.py")
      frozen = validation.validate(config)
      folder, given = _join(frozen, workdir, held)
    else:
      if flags.FLAGS.num_processes or flags.FLAGS.distributed:
        raise validation.ConfigError(f"--mode={mode} is for one process: leave out --coordinator, --num_processes, "
                                     "--process_id and --distributed")
      folder = workspace.existing(workdir, mode)
      frozen = validation.validate(workspace.stored_config(folder, _overrides(config)))
      held.enter_context(lock.hold(folder))
    job = frozen.job
    with held:
      _actions(frozen)[mode](frozen, folder, started, **given)
  except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
  except Diverged as end:
    _fail(end, EXIT_DIVERGED)
  except KeyboardInterrupt:
    print(f"stopped; what checkpoints there are lie in {folder}" if folder else "stopped",
          file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
  except Exception as error:
    line = str(error) if isinstance(error, mistakes) else resource_errors.explain(error, folder, mode, job)
    if os.environ.get("SDS_JAX_TRACEBACK") or not (line or isinstance(error, OSError)):
      raise
    _fail(line or error)


def _join(config: Any, workdir: str | None, held: contextlib.ExitStack) -> tuple[Path, dict[str, Any]]:
  """Meet the other processes of this job, if there are any; the folder, which process 0 has made, and `_inputs`.

  The folder's lock is process 0's; `held` lets go of it. Only process 0 prints.
  """
  from sds_jax import hosts
  from sds_jax.io import lock
  from sds_jax.training import workspace
  told = flags.FLAGS
  hosts.start(told.coordinator, told.num_processes, told.process_id, told.distributed)
  folder = workspace.name_of(config, workdir)

  def prepare() -> dict[str, Any]:
    given = _inputs(config)  # for what these have to say, before there is a folder
    workspace.make(folder)
    held.enter_context(lock.hold(folder))
    return given

  given = hosts.run_on_all(lambda: prepare() if hosts.is_first() else {})
  if not hosts.is_first():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
  return folder, given


def _inputs(config: Any) -> dict[str, Any]:
  """What process 0 has read of the files that the settings name, for the job's `train`."""
  if config.job == "image3d":
    from sds_jax.evaluation import image3d_modes
    return dict(taken=image3d_modes.take(config))
  if config.get("prompts_file"):
    from sds_jax.training import scenes
    scenes.read_prompts(config.prompts_file)  # each process reads them again
  return {}


def _without_stragglers(hook: Callable[[Any], None]) -> Callable[[Any], None]:
  """Python's hook for errors that nobody can catch, but silent for the other writes of a checkpoint that failed.

  After one failed write orbax closes its event loop; the writes still under way then complain that it is gone.
  """
  def quiet(unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
      hook(unraisable)

  return quiet


def _overrides(config: ConfigDict | None) -> dict[str, Any]:
  """The settings that were given one by one on the command line: dotted name -> value."""
  return {} if config is None else dict(config_flags.get_override_values(flags.FLAGS["config"]))


def _actions(config: Any) -> dict[str, Callable[[Any, Path, float], None]]:
  # Imported only now: a mistake in the settings should be told at once, not after seconds of imports.
  if config.job == "image3d":
    from sds_jax.evaluation import image3d_modes
    return image3d_modes.ACTIONS
  if config.job == "image2d":
    from sds_jax.evaluation import image2d_modes
    return image2d_modes.ACTIONS
  if config.get("prompts_file"):
    from sds_jax.evaluation import scenes_modes
    return scenes_modes.ACTIONS
  from sds_jax.evaluation import modes
  return {"train": modes.train, "export": modes.export, "render": modes.render, "evaluate": modes.evaluate}
