"""Decides what follows updates that are not finite, which the step drops and counts (step.py).

The counts come with the other metrics every `training.log_every` steps, so reading them costs nothing. After
`divergence.patience` bad updates in a row the run returns to its last good checkpoint and continues with other draws
and a lower learning rate. After `divergence.restarts` returns the run gives up.
"""
from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sds_jax.settings.training import DivergenceSettings
from sds_jax.training.state import TrainState


_REMEDY = ("If the prior is sound, lower config.optimizer.learning_rate or set config.distillation.clip_norm=1.0 or "
           "config.optimizer.clip_norm=1.0, and take --config.prior.dtype=float32")


class Diverged(RuntimeError):
  """Raised when updates stay non-finite.

  The message says what was tried and where the last good state is.
  """


def out_of_patience(patience: int, metrics: list[dict[str, np.ndarray]]) -> np.ndarray:
  """Returns whether these steps hold `patience` bad updates in a row.

  The result is bool [], or [N] for N scenes.
  """
  # The largest, not the last: a good update after the bad ones sets the count back to 0.
  longest = np.max([step["in_a_row"] for step in metrics], axis=0)
  return longest >= patience


def restarted(state: TrainState, restarts: int, dropped: int) -> TrainState:
  """Returns a good state with the counts of restarts and of dropped updates."""
  count = lambda value: jnp.asarray(value, jnp.int32)  # noqa: E731
  return dataclasses.replace(state, health=dict(dropped=count(dropped), in_a_row=count(0), restarts=count(restarts)))


def gave_up(d: DivergenceSettings, step: int, where: str) -> Diverged:
  """Returns the error of a run whose restarts are used up.

  `where` says where the last good state is.
  """
  return Diverged(
      f"gave up at step {step}: {d.patience} updates in a row were not finite (NaN or infinite), after {d.restarts} "
      f"restart{'s' * (d.restarts != 1)}, each with {d.learning_rate_factor} times the learning rate; {where}. "
      f"{_REMEDY}")


def is_untouched(health: dict[str, np.ndarray], step: int) -> np.ndarray:
  """Returns whether all updates of a state were dropped, so that the state is the initial one.

  The result is bool [], or [N] for N scenes.
  """
  return (np.asarray(health["in_a_row"]) >= step) & (step > 0)


def nothing_learnt(step: int, workdir: Path) -> Diverged:
  """Returns the error of a run that ends with its initial object."""
  return Diverged(
      f"none of the {step} updates of the run in {workdir} was finite (NaN or infinite), so the object is the initial "
      f"one and is not written. {_REMEDY}; --config.resume=never starts anew")
