"""The protocol of a task, whose methods the commands call."""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.loop import RunResult
from sds_jax.training.program import Program
from sds_jax.training.state import TrainState
from sds_jax.types import Params


class OpenRun(NamedTuple):
  """The arguments of `loop.train` for an opened run.

  Attributes:
    program: the functions of the run.
    prior: the main prior, whose source is recorded.
    prior_params: on the devices.
    layout: the devices.
  """
  program: Program
  prior: Prior
  prior_params: Params
  layout: DeviceLayout


class Task(Protocol):
  """A run of one kind, with its validated settings.

  All methods share the compiled renderers.

  Attributes:
    settings: the tree.
    run_name: default name of the run's folder, without the seed.
    headline: first words of the log.
  """
  settings: Any
  run_name: str
  headline: str

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that the run may write in its folder.

    `folder` is that of a finished run, whose inputs are stored.
    """

  def user_files(self, folder: Path) -> dict[str, str]:
    """Returns {setting: file of the user}.

    The run reads these files and must not overwrite them in its folder.
    """

  def read_inputs(self) -> Any:
    """Reads and checks the user's files.

    Process 0 calls this before any folder is made.
    """

  def check(self) -> None:
    """Opens the priors and checks the prompts, but reads no weights.

    The check comes before any folder is made.
    """

  def open(self, inputs: Any) -> OpenRun:
    """Loads the priors and makes the program.

    `inputs` is None in all processes but the first.
    """

  def preview(self, state: TrainState, folder: Path, step: int) -> None:
    """Writes an image of the progress."""

  def finish(self, result: RunResult, folder: Path, timings: dict[str, float], started: float) -> None:
    """Writes all outputs after the last step.

    `started` is the start of the command, by `time.perf_counter`.
    """

  def restore(self, folder: Path) -> TrainState:
    """Returns the state of the newest checkpoint."""

  def export(self, state: TrainState, folder: Path, started: float) -> None:
    """Writes all outputs of a restored state."""

  def check_views(self, folder: Path) -> None:
    """Raises ConfigError where the task has no views to render."""

  def render(self, state: TrainState, folder: Path) -> None:
    """Writes the renders of a restored state alone.

    The task has passed `check_views`.
    """
