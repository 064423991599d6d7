"""Numbers that may change over a run: guidance scale, loss weights, ends of the range of t."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from sds_jax.types import Array

ScalarSpec: TypeAlias = float | Sequence[Sequence[float]]
"""A constant, or knots ((progress, value), ...), linear in between and constant beyond the first and the last."""


def check_scalar(spec: ScalarSpec) -> None:
  """Raises ValueError, with what is legal, unless spec is a finite number or knots of growing progress in [0, 1].

  >>> check_scalar(7.5), check_scalar(((0.0, 100.0), (1.0, 50.0)))
  (None, None)
  """
  legal = "legal: a number, or ((progress, value), ...) with progress growing within [0, 1]"
  try:
    knots = np.asarray(spec, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{spec!r} is no scalar schedule; {legal}") from error
  if not np.all(np.isfinite(knots)) or (knots.ndim != 0 and (knots.ndim != 2 or knots.shape[1] != 2 or not knots.size)):
    raise ValueError(f"{spec!r} is no scalar schedule; {legal}")
  if knots.ndim == 2 and (np.any(np.diff(knots[:, 0]) <= 0) or knots[0, 0] < 0 or knots[-1, 0] > 1):
    raise ValueError(f"progress {knots[:, 0].tolist()} of a scalar schedule does not fit; {legal}")


def schedule_value(spec: ScalarSpec, progress: Array | float) -> Array:
  """The value of a scalar schedule.

  Args:
    spec: static (see `ScalarSpec`).
    progress: fraction of the run that is done, in [0, 1], any shape; may be traced.

  Returns:
    float32, the shape of progress.

  Raises:
    ValueError: spec is malformed.

  >>> print(schedule_value(((0.0, 100.0), (1.0, 50.0)), jnp.array([0.0, 0.5, 1.0])))
  [100.  75.  50.]
  """
  check_scalar(spec)
  progress = jnp.asarray(progress, jnp.float32)
  if np.ndim(spec) == 0:
    return jnp.full(progress.shape, spec, jnp.float32)
  positions, values = jnp.asarray(np.asarray(spec, np.float32).T)
  return jnp.interp(progress, positions, values)
