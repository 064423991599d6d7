"""The command line: flags, checks, one call for each mode.

A user's mistake ends in one line and exit status 2.
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, logging

from sds_jax import terminal
from sds_jax.commands import flags
from sds_jax.commands.flags import Arguments

EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 2, 3, 130

_LONGEST = 3000
"""Characters of an error; of a longer one, such as for a prompt of a whole book, the middle is left out."""


def main() -> None:
  """Runs the command of `run.py` and of `sds-jax`."""
  started = time.perf_counter()
  terminal.show_any_text()
  # Modules that settings name, such as a user's own generator, may lie in the current folder. At the end of the path,
  # so that no file there takes the place of an installed module.
  with contextlib.suppress(OSError):  # the current folder may have been deleted
    if os.getcwd() not in sys.path:
      sys.path.append(os.getcwd())
  app.run(lambda arguments: _run(arguments, started), flags_parser=_parse)


def _parse(argv: list[str]) -> Arguments:
  try:
    return flags.parse(argv)
  except (ValueError, OSError) as error:
    fail(error)
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)


def fail(error: Exception | str, status: int = EXIT_MISTAKE) -> None:
  """Prints one line to stderr and ends the process.

  In a job of several processes this process ends at once, because an orderly exit would wait for the others.
  """
  from sds_jax import hosts
  text = " ".join(str(error).split())
  if len(text) > _LONGEST:
    # The setting stands at the beginning, the legal values and the remedy at the end.
    text = f"{text[:_LONGEST // 2]} ... {text[-_LONGEST // 2:]}"
  # Characters that a terminal would obey or not show (escape sequences, marks of direction) are printed as escapes.
  print("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
  hosts.exit_now(status)
  sys.exit(status)


def _run(arguments: Arguments, started: float) -> None:
  """Checks everything, then calls the command of the mode."""
  # Heavy modules are imported only now: a mistake in the settings is reported at once, not after seconds of imports.
  from sds_jax import hosts
  from sds_jax.commands import errors
  from sds_jax.training.divergence import Diverged
  from sds_jax.training.loop import Interrupted
  if not arguments.verbose:
    # Orbax logs every file, and a failed write several times with tracebacks before it raises the error.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = errors.without_orphaned_writes(sys.unraisablehook)
  hosts.configure()
  run = _Run(arguments)
  try:
    with contextlib.ExitStack() as stack:
      command = run.prepare(stack)
      command(started)
  except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
  except Diverged as end:
    fail(end, EXIT_DIVERGED)
  except KeyboardInterrupt:
    print(f"stopped; the checkpoints are in {run.folder}" if run.folder else "stopped", file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
  except Exception as error:
    line = errors.explain(error, run.folder, arguments.mode, run.job)
    # What nothing explains is a fault of the library, and its traceback is shown.
    if os.environ.get("SDS_JAX_TRACEBACK") or not (line or isinstance(error, OSError)):
      raise
    fail(line or error)


class _Run:
  """One call of the command, with the folder and the task for errors."""

  def __init__(self, arguments: Arguments):
    self.arguments, self.folder, self.job = arguments, None, "text3d"

  def prepare(self, stack: contextlib.ExitStack) -> Callable[[float], None]:
    """Checks the settings and locks the folder; returns the command.

    The command is a function of its start.

    Args:
      stack: releases the folder's lock.
    """
    from sds_jax import settings as settings_lib, tasks
    from sds_jax.schema import ConfigError
    a = self.arguments
    if a.mode == "train":
      if a.config is None:
        raise ConfigError("no settings given: say --config=configs/text.py")
      settings = settings_lib.validate(a.config)
      self.job, task = settings.job, tasks.of(settings)
      inputs = self._join(task, stack)
      # Only now, since the import of the training loop takes seconds.
      from sds_jax.commands.train import train
      return lambda started: train(task, self.folder, started, inputs)
    task = self._stored_task(stack)
    command = _finished_run_commands()[a.mode]
    return lambda started: command(task, self.folder, started)

  def _stored_task(self, stack: contextlib.ExitStack) -> Any:
    """Returns the task of a finished run, and locks the run's folder.

    The settings of the task have the overrides of the command line.
    """
    from sds_jax import hosts, settings as settings_lib, tasks
    from sds_jax.schema import ConfigError
    from sds_jax.training import workspace
    a = self.arguments
    if a.num_processes or a.distributed:
      raise ConfigError(f"--mode={a.mode} is for one process: leave out --coordinator, --num_processes, --process_id "
                        "and --distributed")
    self.folder = workspace.existing_folder(a.workdir, a.mode)
    settings = settings_lib.validate(workspace.stored_config(self.folder, a.overrides))
    self.job, task = settings.job, tasks.of(settings)
    hosts.check_platform()
    stack.enter_context(workspace.hold(self.folder, task.outputs(self.folder), self.job, {}))
    return task

  def _join(self, task: Any, stack: contextlib.ExitStack) -> Any:
    """Joins the other processes of a job, if any.

    Process 0 reads the inputs, and makes and locks the folder.

    Inputs, files in the way, priors and prompts are checked before the folder is made.

    Returns:
      The task's inputs in process 0, None in the other processes, which print nothing.
    """
    from sds_jax import compilation, hosts
    from sds_jax.training import workspace
    a = self.arguments
    hosts.start(a.coordinator, a.num_processes, a.process_id, a.distributed)
    hosts.check_platform()
    folder = workspace.folder_of(a.workdir or task.settings.workdir, task.run_name, task.settings.seed)
    self.folder = folder

    def read() -> tuple[Any, Any, dict[str, str]]:
      inputs, layout, user_files = task.read_inputs(), task.outputs(), task.user_files(folder)
      if not workspace.is_locked(folder):  # otherwise another run may be writing there
        workspace.check_files(folder, layout, user_files)
      return inputs, layout, user_files

    def make(layout: Any, user_files: dict[str, str]) -> None:
      workspace.make_folder(folder)
      stack.enter_context(workspace.hold(folder, layout, self.job, user_files))

    # One process reads; if it fails, all end, instead of waiting for it for ever.
    inputs, *names = hosts.run_on_all(lambda: read() if hosts.is_first() else (None,))
    compilation.prepare()  # before the first program is compiled, after which JAX would ignore the cache
    hosts.run_on_all(task.check)
    hosts.run_on_all(lambda: make(*names) if hosts.is_first() else None)
    # One process speaks for the job; otherwise every line would appear once a process.
    if not hosts.is_first():
      sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return inputs


def _finished_run_commands() -> dict[str, Callable[[Any, Path, float], None]]:
  """Returns the commands over a finished run by mode."""
  from sds_jax.commands.evaluate import evaluate
  from sds_jax.commands.export import export, render
  return {"export": export, "render": render, "evaluate": evaluate}
