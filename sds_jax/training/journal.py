"""What a run tells while it steps: the progress bar, metrics.jsonl and TensorBoard's events."""
from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
import tqdm

from sds_jax.io import files

COUNTS = ("dropped", "in_a_row")
"""Metrics of which the last counts, and not the mean."""


class Journal:
  """Use as a context manager. In processes that do not write it does nothing."""

  def __init__(self, workdir: Path, first: int, steps: int, writes: bool = True):
    """A run of `steps` that goes on from step `first`."""
    self._workdir, self._steps, self._writes = workdir, steps, writes
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=first + 1) if writes else None
    self._bar = tqdm.tqdm(initial=first, total=steps, desc="optimising", unit="step", mininterval=0.5,
                          disable=not writes)
    self._mark(first)

  def __enter__(self) -> Journal:
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()
    if self._board:
      self._board.close()

  def _mark(self, step: int) -> None:
    """From here on steps per second are counted."""
    self._first, self._started = step, time.perf_counter()

  def tick(self) -> None:
    """One step is under way."""
    self._bar.update()

  def log(self, step: int, metrics: list[dict[str, np.ndarray]]) -> None:
    """Write what the steps since the last call have told; dropped updates count, but play no part in the means."""
    if not self._writes:
      return
    means = summary(metrics)
    means["steps_per_second"] = (step - self._first) / max(time.perf_counter() - self._started, 1e-9)
    files.append_metrics(self._workdir / "metrics.jsonl", step, means)
    for name, value in means.items():
      if math.isfinite(value):
        self._board.add_scalar(name, value, step)
    told = dict(grad=f"{means['sds_grad_norm']:.3g}")
    if "mean_opacity" in means:
      told["opacity"] = f"{means['mean_opacity']:.2f}"
    if means["dropped"]:
      told["dropped"] = f"{means['dropped']:.0f}"
    self._bar.set_postfix(told)

  def go_back(self, step: int) -> None:
    """The run goes on from an earlier step: what was logged after it is forgotten."""
    if not self._writes:
      return
    files.truncate_metrics(self._workdir / "metrics.jsonl", step)
    self._board.close()
    self._board = tensorboardX.SummaryWriter(str(self._workdir), purge_step=step + 1)
    self._bar.n = step
    self._bar.refresh()
    self._mark(step)

  def close(self, health: dict[str, Any]) -> None:
    """The last word, where something was dropped."""
    dropped, restarts = int(np.sum(health["dropped"])), int(np.sum(health["restarts"]))
    if self._writes and dropped:
      self._bar.close()
      print(f"{dropped} update{'s' * (dropped > 1)} of this run {'were' if dropped > 1 else 'was'} not finite and "
            f"{'were' if dropped > 1 else 'was'} left out"
            + (f"; it was taken back {restarts} time{'s' * (restarts > 1)}" if restarts else ""))


def summary(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
  """The mean of each metric over the steps in which it is finite (NaN: in none); of COUNTS the last."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
    values = {name: np.array([step[name] for step in metrics], np.float64) for name in metrics[0]}
    return {name: float(series[-1] if name in COUNTS else np.nanmean(np.where(np.isfinite(series), series, np.nan)))
            for name, series in values.items()}
