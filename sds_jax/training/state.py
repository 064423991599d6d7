"""The state of a run: everything that a checkpoint holds."""
from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sds_jax.types import Array, Params, PyTree

# Counted on the device, so that no step waits for the host, and kept in checkpoints.
COUNTERS = ("dropped", "in_a_row", "restarts")


def zero_counters() -> dict[str, Array]:
  """Returns zero counters."""
  return {name: jnp.zeros((), jnp.int32) for name in COUNTERS}


class TrainState(PyTree):
  """The state of a run, all of which a checkpoint holds.

  Attributes:
    step: [] int32, the number of updates done.
    params: of the generator.
    opt_state: of the optimiser.
    occupancy: the generator's buffers: of a field the occupancy grid (rendering/occupancy.py), else mostly None.
    estimator: the estimator's state, or None: dict(score=..., opt_state=...) of a second network;
      dict(params=..., occupancy=...) of the source of an edit, which never changes.
    ema: an average of the last parameters (`optimizer.ema_decay`) for outputs; or None.
    health: counters, [] int32 each: `dropped`, the number of non-finite updates; `in_a_row`, the number of non-finite
      updates since the last finite update; `restarts`, the number of returns to an earlier state.
  """
  step: Array
  params: Params
  opt_state: Any
  occupancy: Any
  estimator: Any = None
  ema: Any = None
  health: dict[str, Array] = flax.struct.field(default_factory=zero_counters)

  @property
  def shown(self) -> Params:
    """The parameters for outputs: the average if the run keeps one, else the last."""
    return self.params if self.ema is None else self.ema


def init_state(params: Params, optimizer: optax.GradientTransformation, occupancy: Any = None,
               averaged: bool = False) -> TrainState:
  """Returns a state before its first update.

  `averaged` adds an `ema`.
  """
  # `ema` is a copy, because the step donates the state, and no buffer can be donated twice.
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
                    occupancy=occupancy, ema=jax.tree.map(jnp.copy, params) if averaged else None)
