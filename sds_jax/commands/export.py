"""The commands `export` and `render`: outputs again, from the newest checkpoint."""
from __future__ import annotations

import time
from pathlib import Path

from sds_jax.commands.per_scene import per_scene
from sds_jax.tasks.task import Task


@per_scene
def export(task: Task, folder: Path, started: float) -> None:
  """Writes all outputs of a run anew."""
  task.export(task.restore(folder), folder, started)


@per_scene
def render(task: Task, folder: Path, started: float) -> None:
  """Writes the renders of a run anew.

  Raises:
    ConfigError: the task has no views.
  """
  task.check_views(folder)  # first, since restoring compiles
  task.render(task.restore(folder), folder)
  print(f"done in {time.perf_counter() - started:.0f} s")
