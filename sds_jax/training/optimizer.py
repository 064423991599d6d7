"""The optimiser of a run, and the average of its parameters."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sds_jax.settings.optimizer import OptimizerSettings
from sds_jax.types import Array, Params


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
  """Builds the optimiser of a run.

  The learning rate rises linearly and then falls by a cosine until the last of `steps`.

  With a `background_factor` other than 1 the parameters must be {"field": ..., "background": ...}.
  """
  rate = optax.cosine_decay_schedule(settings.learning_rate, steps - settings.warmup_steps, settings.final_fraction)
  if settings.warmup_steps:
    warm = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    # After the boundary the second schedule counts from 0, hence the shorter cosine above.
    rate = optax.join_schedules([warm, rate], [settings.warmup_steps])
  adaptive = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
  # Constructors in functions, so that only the chosen one runs.
  optimizers = {
      "adam": lambda: optax.adam(rate, **adaptive),
      "adamw": lambda: optax.adamw(rate, **adaptive),
      # Adan has three betas of other meanings, and keeps its own.
      "adan": lambda: optax.adan(rate, eps=settings.eps),
      "sgd": lambda: optax.sgd(rate, momentum=settings.b1),
  }
  # Clipped before the optimiser, whose moments would keep one huge gradient for many steps.
  clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []
  # After the optimiser: the adaptive ones divide any factor on the gradient out again.
  slower = [optax.masked(optax.scale(settings.background_factor), dict(field=False, background=True))]
  return lenient(optax.chain(*clip, optimizers[settings.name](), *(slower if settings.background_factor != 1 else [])))


def lenient(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns the same optimiser, usable under strict dtype promotion.

  optax mixes step counts and floats.
  """
  def update(grads: Any, state: Any, params: Params | None = None) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):
      return optimizer.update(grads, state, params)

  return optax.GradientTransformation(optimizer.init, update)


def average(ema: Any, params: Params, decay: float, step: Array) -> Any:
  """Returns decay ema + (1 - decay) params; None if ema is None.

  The decay begins at 0.1 and grows to `decay`, so that the first parameters are soon forgotten.

  Args:
    step: [] int32, the number of updates before these parameters.
  """
  if ema is None:
    return None
  count = step.astype(jnp.float32)
  # In float32 even for bfloat16 parameters: 1 - decay is below the resolution of bfloat16.
  # The growth is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
  keep = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
  return jax.tree.map(lambda old, new: (keep * old + (1.0 - keep) * new).astype(old.dtype), ema, params)
