"""The random streams of a step, and the fraction of the run that is done."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.prng import as_threefry
from sds_jax.settings.training import MAX_STEPS
from sds_jax.types import Array

STREAMS = ("views", "rest", "shading", "t", "distil", "encode", "occupancy", "score", "forget")
"""Names of the random streams of a step, each with its own key."""


def step_keys(key: Array, step: Array, restarts: Array | int = 0) -> dict[str, Array]:
  """Returns a key for each of STREAMS.

  The number of a restart occupies the bits above the step's number. Shading ignores the restarts, because scenes
  that are optimised together share one shading mode whether restarted or not.

  Args:
    key: of the run, of any PRNG implementation; the same at every step.
    step: [] int32, number of the step.
    restarts: [] int32, number of restarts of the run.
  """
  key = as_threefry(key)
  split = lambda number: jax.random.split(jax.random.fold_in(key, number), len(STREAMS))  # noqa: E731
  keys = dict(zip(STREAMS, split(step + MAX_STEPS * restarts)))
  return dict(keys, shading=split(step)[STREAMS.index("shading")])


def progress_at(step: Array, steps: int) -> Array:
  """Returns the fraction [] float32 of a run that is done before a step.

  `step` is [] int32, `steps` the number of steps of the run.
  """
  return step.astype(jnp.float32) / steps
