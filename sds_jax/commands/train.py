"""The command `train`: optimise, and write all outputs."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from sds_jax import compilation, hosts
from sds_jax.tasks.task import Task
from sds_jax.training import loop


def train(task: Task, folder: Path, started: float, inputs: Any = None) -> None:
  """Runs a task to its last step and writes its outputs into `folder`.

  Args:
    task: with its settings.
    folder: of the run; exists.
    started: when the command began, by `time.perf_counter`.
    inputs: of `Task.read_inputs`, in process 0.

  Raises:
    Diverged: updates stay non-finite. In a run of many scenes the other scenes are finished and written first.
  """
  compilation.prepare()
  print(f"{hosts.run_on_all(lambda: task.headline)}; everything goes to {folder}")
  run = task.open(inputs)
  result = loop.train(task.settings, folder, run.prior, run.prior_params, run.program, run.layout,
                      lambda state, step: task.preview(state, folder, step))
  # Process 0 alone writes the outputs; the others end here.
  if not hosts.shut_down():
    return
  task.finish(result, folder, dict(load_s=result.started - started, **result.timings), started)
