"""What is done where updates are not finite. The step itself drops and counts them (update.py); this reads the counts.

They come with the other metrics, every `training.log_every` steps, so looking costs nothing. A run of bad updates as
long as `divergence.patience` takes the run back to its last good checkpoint, where it goes on with other draws and a
lower learning rate; after `divergence.restarts` of these it gives up.
"""
from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import ml_collections
import numpy as np

from sds_jax.training.state import TrainState


class Diverged(RuntimeError):
  """A run whose updates do not become finite again; the message says what was tried and where the last state lies."""


def out_of_patience(config: ml_collections.FrozenConfigDict, metrics: list[dict[str, np.ndarray]]) -> np.ndarray:
  """Whether [] (or [N] of N scenes) there was a run of `patience` bad updates in these steps."""
  longest = np.max([step["in_a_row"] for step in metrics], axis=0)
  return longest >= config.divergence.patience


def restarted(state: TrainState, restarts: int, dropped: int) -> TrainState:
  """A good state as the run goes on from it: with the number of the restart, and all that were dropped till now."""
  count = lambda value: jnp.asarray(value, jnp.int32)  # noqa: E731
  return dataclasses.replace(state, health=dict(dropped=count(dropped), in_a_row=count(0), restarts=count(restarts)))


def gave_up(config: ml_collections.FrozenConfigDict, step: int, where: str) -> Diverged:
  """The error of a run that has been taken back often enough."""
  d = config.divergence
  return Diverged(
      f"gave up at step {step}: {d.patience} updates in a row were not finite (NaN or infinite), after {d.restarts} "
      f"restart{'s' * (d.restarts != 1)}, each with {d.learning_rate_factor} times the learning rate; {where}. If the "
      "prior is sound, lower config.optimizer.learning_rate or set config.distillation.clip_norm=(1.0,) or "
      "config.optimizer.clip_norm=1.0, and take --config.prior.dtype=float32")
