"""The state of a run, and the optimiser that moves it."""
from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.types import Array, Params


@flax.struct.dataclass
class TrainState:
  """Everything that a checkpoint holds.

  Attributes:
    step: [] int32, the number of updates done.
    params: {"field": ..., "background": ...}.
    opt_state: of `make_optimizer`.
    occupancy: the occupancy grid of the field (rendering/occupancy.py), or None.
    estimator: what the estimator keeps (step.begin), or None: dict(score=phi, opt_state=...) of VSD's second network;
      dict(params=..., occupancy=...) of the source that DDS and PDS edit, which never changes.
    ema: an average of the last parameters (`optimizer.ema_decay`), which is what is shown; or None.
    health: counts, [] int32 each: `dropped` updates that were not finite; how many of them `in_a_row` there were last;
      `restarts`, how often the run was taken back to an earlier state because of them.
  """
  step: Array
  params: Params
  opt_state: Any
  occupancy: Any
  estimator: Any = None
  ema: Any = None
  health: dict[str, Array] = flax.struct.field(default_factory=lambda: new_health())

  @property
  def shown(self) -> Params:
    """The parameters that outputs are made of."""
    return self.params if self.ema is None else self.ema


HEALTH = ("dropped", "in_a_row", "restarts")


def new_health() -> dict[str, Array]:
  """The counts of a state that nothing has happened to."""
  return {name: jnp.zeros((), jnp.int32) for name in HEALTH}


def init_state(params: Params, optimizer: optax.GradientTransformation, occupancy: Any,
               averaged: bool = False) -> TrainState:
  """A state before its first update; `averaged`: with an `ema`."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
                    occupancy=occupancy, ema=jax.tree.map(jnp.copy, params) if averaged else None)


def average(ema: Any, params: Params, decay: float, step: Array) -> Any:
  """decay ema + (1 - decay) params, with a decay that begins at 0.1 and grows, so that a beginning is soon forgotten.

  Args:
    ema: None where there is none.
    step: [] int32, the number of updates before these parameters.
  """
  if ema is None:
    return None
  count = step.astype(jnp.float32)
  keep = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
  return jax.tree.map(lambda old, new: (keep * old + (1.0 - keep) * new).astype(old.dtype), ema, params)


def make_optimizer(config: ml_collections.FrozenConfigDict) -> optax.GradientTransformation:
  """The optimiser of `config.optimizer`, its learning rate warmed up linearly and then lowered by a cosine.

  With a `background_factor` other than 1 it is one of {"field": ..., "background": ...} only.
  """
  settings, steps = config.optimizer, config.training.steps
  rate = optax.cosine_decay_schedule(settings.learning_rate, steps - settings.warmup_steps, settings.final_fraction)
  if settings.warmup_steps:
    warm = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    rate = optax.join_schedules([warm, rate], [settings.warmup_steps])
  adaptive = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
  # Constructors in functions, so that only the one asked for is made.
  optimizers = {
      "adam": lambda: optax.adam(rate, **adaptive),
      "adamw": lambda: optax.adamw(rate, **adaptive),
      "adan": lambda: optax.adan(rate, eps=settings.eps),
      "sgd": lambda: optax.sgd(rate, momentum=settings.b1),
  }
  clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []
  slower = [optax.masked(optax.scale(settings.background_factor), dict(field=False, background=True))]
  return lenient(optax.chain(*clip, optimizers[settings.name](), *(slower if settings.background_factor != 1 else [])))


def lenient(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same optimiser under any setting of jax_numpy_dtype_promotion: optax mixes step counts and floats."""
  def update(grads: Any, state: Any, params: Params | None = None) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):
      return optimizer.update(grads, state, params)

  return optax.GradientTransformation(optimizer.init, update)
