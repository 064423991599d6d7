"""The log of a run: the progress bar, metrics.jsonl and TensorBoard's events."""
from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from sds_jax import hosts
from sds_jax.io import files

COUNTS = ("dropped", "in_a_row")
"""Metrics of which the last value is logged, not the mean."""


class RunLog:
  """A log of a run; a context manager.

  Processes that do not write log nothing.
  """

  def __init__(self, workdir: Path, folders: Sequence[Path], first: int, steps: int):
    """Starts the log of a run.

    Args:
      workdir: folder of the run, for TensorBoard's events.
      folders: folders for metrics.jsonl: one for each scene of many, or `workdir` itself. TensorBoard gets the means.
      first: number of updates done before.
      steps: number of steps of the run.
    """
    writes = hosts.is_first()
    self._workdir, self._folders, self._writes = workdir, folders, writes
    self._board = _board(workdir, first + 1) if writes else None
    self._bar = tqdm.tqdm(initial=first, total=steps, desc="optimising", unit="step", mininterval=0.5,
                          disable=not writes)
    self._mark(first)

  def __enter__(self) -> RunLog:
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()
    if self._board:
      self._board.close()

  def _mark(self, step: int) -> None:
    """Starts counting steps per second."""
    self._first, self._started = step, time.perf_counter()

  def tick(self) -> None:
    """Counts one step."""
    self._bar.update()

  def log(self, step: int, metrics: list[dict[str, np.ndarray]]) -> None:
    """Writes the means of the metrics since the last call.

    Non-finite values are left out of the means.
    """
    if not self._writes:
      return
    # The floor of the divisor: two readings of the clock may be equal.
    every, rate = summary(metrics), (step - self._first) / max(time.perf_counter() - self._started, 1e-9)
    for number, folder in enumerate(self._folders):
      row = {name: float(values[number]) for name, values in every.items()}
      files.append_metrics(folder / "metrics.jsonl", step, dict(row, steps_per_second=rate))
    means = {name: float(_finite_mean(values)) for name, values in every.items()} | dict(steps_per_second=rate)
    # NaN where no update since the last line had a finite value; a curve has no point there.
    self._board.add(step, {name: value for name, value in means.items() if math.isfinite(value)})
    shown = dict(grad=f"{means['sds_grad_norm']:.3g}")
    if "mean_opacity" in means:
      shown["opacity"] = f"{means['mean_opacity']:.2f}"
    if dropped := np.sum(every["dropped"]):
      shown["dropped"] = f"{dropped:.0f}"
    self._bar.set_postfix(shown)

  def go_back(self, step: int) -> None:
    """Deletes the log after `step`, from which the run continues."""
    if not self._writes:
      return
    for folder in self._folders:
      files.truncate_metrics(folder / "metrics.jsonl", step)
    self._board.close()
    self._board = _board(self._workdir, step + 1)
    self._bar.n = step
    self._bar.refresh()
    self._mark(step)

  def close(self, health: dict[str, Any]) -> None:
    """Prints the number of dropped updates, if there were any."""
    dropped, restarts = int(np.sum(health["dropped"])), int(np.sum(health["restarts"]))
    if self._writes and dropped:
      self._bar.close()
      print(f"{dropped} update{'s' * (dropped > 1)} of this run {'were' if dropped > 1 else 'was'} not finite and "
            f"{'were' if dropped > 1 else 'was'} left out"
            + (f"; it was taken back {restarts} time{'s' * (restarts > 1)}" if restarts else ""))


def _board(folder: Path, first: int) -> Any:
  """Returns the writer of TensorBoard's events."""
  # Imported late: tensorboardX imports torch where torch is installed, which takes seconds.
  from sds_jax.io.tensorboard import EventWriter
  return EventWriter(folder, first)


def summary(metrics: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns the mean [N] of each metric over the steps with finite values.

  A metric without any is NaN. Of COUNTS the last value is returned.

  Args:
    metrics: of each step, [] for one object or [N] for N scenes.
  """
  # float64, so that sums of many float32 values keep their digits.
  series = {name: np.array([np.atleast_1d(step[name]) for step in metrics], np.float64) for name in metrics[0]}
  return {name: values[-1] if name in COUNTS else _finite_mean(values) for name, values in series.items()}


def _finite_mean(values: np.ndarray) -> np.ndarray:
  """Returns the mean of the finite values along the first axis.

  Where no value is finite, the mean is NaN.
  """
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  return np.where(count, np.where(finite, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
