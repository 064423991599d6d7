"""The common part of tasks whose generator is known from the settings."""
from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sds_jax import hosts
from sds_jax.generators.protocol import Generator
from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior, Weights
from sds_jax.tasks import priors
from sds_jax.tasks.restore import restore_state
from sds_jax.tasks.task import OpenRun
from sds_jax.training import program as program_lib, workspace
from sds_jax.training.layout import DeviceLayout, make_layout
from sds_jax.training.optimizer import make_optimizer
from sds_jax.training.program import Program
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params


class GeneratorTask:
  """A run of one generator.

  Attributes:
    settings: the validated tree.
    generator: the generator of the settings.
  """
  settings: Any
  generator: Generator

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that every run writes."""
    del folder
    return workspace.LAYOUT

  def user_files(self, folder: Path) -> dict[str, str]:
    """Returns the settings of the run that this run edits, if any."""
    del folder
    source = self.settings.distillation.source
    return {"distillation.source": str(Path(source) / "config.json")} if source else {}

  def read_inputs(self) -> Any:
    """Reads nothing: a prompt needs no file."""

  @functools.cached_property
  def opened(self) -> tuple[Prior, Weights]:
    """The prior and its weights, unread; the prompts have been checked."""
    raise NotImplementedError

  def check(self) -> None:
    """Opens the prior and checks devices and prompts, but reads no weights.

    Raises:
      ConfigError: the views do not fit the devices, or the prior does not suit the task or the prompt.
      CheckpointError: files of the prior are missing or damaged.
    """
    # Made for its errors alone, before anything is opened.
    self.make_layout()
    _ = self.opened

  def check_views(self, folder: Path) -> None:
    """Accepts every task whose outputs are views."""

  def make_layout(self) -> DeviceLayout:
    """Returns the devices of the run."""
    return make_layout(self.settings.parallel, self.settings.training.views, self.generator.together)

  def new_state(self, key: Array) -> TrainState:
    """Returns a state before its first update, without the estimator's part; consumes `key`."""
    optimizer = make_optimizer(self.settings.optimizer, self.settings.training.steps)
    return program_lib.new_state(self.generator, optimizer, key, self.settings.optimizer.ema_decay > 0)

  def restore(self, folder: Path) -> TrainState:
    """Returns the state of the newest checkpoint."""
    return restore_state(self.new_state, folder, self.settings.training.keep_checkpoints)


class PromptTask(GeneratorTask):
  """A run whose only prior is conditioned on prompts."""

  def program(self, prior: Prior) -> Program:
    """Returns the functions of the run."""
    raise NotImplementedError

  def load_prior(self, layout: DeviceLayout | None = None) -> tuple[Prior, Params]:
    """Opens the prior, checks the prompts, and reads the weights.

    Without a layout the weights go onto the first device.
    """
    s = self.settings
    prior, weights = self.opened
    params = priors.load_weights(weights, layout)
    print("\n".join(priors.describe_choices(prior, s.distillation, s.negative_prompt)))
    return prior, params

  def open(self, inputs: Any = None) -> OpenRun:
    """Loads the prior and makes the program.

    Raises:
      ConfigError: the prior does not suit the task or the prompt, or the user's generator does not work.
      CheckpointError: files of the prior are missing or damaged.
    """
    del inputs
    layout = self.make_layout()
    prior, params = hosts.run_on_all(lambda: self.load_prior(layout))
    return OpenRun(self.program(prior), prior, params, layout)
