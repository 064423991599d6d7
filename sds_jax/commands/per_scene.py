"""Commands over a finished run, of one object or of many scenes."""
from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from sds_jax.tasks.scenes import ScenesTask
from sds_jax.tasks.task import Task

Command = Callable[[Task, Path, float], None]
"""(task, folder of the run, start of the command) -> None."""


def per_scene(command: Command) -> Command:
  """Returns a command that is called for every scene's folder.

  A run without scenes is one scene: the command is called for the run's folder.
  """
  @functools.wraps(command)
  def run(task: Task, folder: Path, started: float) -> None:
    if isinstance(task, ScenesTask):
      task.in_each(folder, lambda scene, place: command(scene, place, started))
    else:
      command(task, folder, started)

  return run
