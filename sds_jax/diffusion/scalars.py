"""Scalar schedules for numbers changing over a run: guidance scale, loss weights, range of t."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from sds_jax.types import Array

ScalarSpec: TypeAlias = float | Sequence[Sequence[float]]
"""A constant, or knots ((progress, value), ...) with linear interpolation and constant extrapolation.

A single knot is a constant.
"""


def check_scalar(spec: ScalarSpec) -> None:
  """Checks a scalar schedule.

  Raises:
    ValueError: spec is neither a finite number nor knots with progress growing within [0, 1].

  >>> check_scalar(7.5), check_scalar(((0.0, 100.0), (1.0, 50.0)))
  (None, None)
  """
  legal = "legal: a number, or ((progress, value), ...) with progress growing within [0, 1]"
  try:
    knots = np.asarray(spec, np.float64)  # ragged knots raise ValueError here
  except (TypeError, ValueError) as error:
    raise ValueError(f"{spec!r} is not a scalar schedule; {legal}") from error
  if not np.all(np.isfinite(knots)) or (knots.ndim != 0 and (knots.ndim != 2 or knots.shape[1] != 2 or not knots.size)):
    raise ValueError(f"{spec!r} is not a scalar schedule; {legal}")
  if knots.ndim == 2 and (np.any(np.diff(knots[:, 0]) <= 0) or knots[0, 0] < 0 or knots[-1, 0] > 1):
    raise ValueError(f"progress {knots[:, 0].tolist()} of a scalar schedule is not legal; {legal}")


def schedule_value(spec: ScalarSpec, progress: Array | float) -> Array:
  """Evaluates a scalar schedule.

  Args:
    spec: static, see `ScalarSpec`.
    progress: finished fraction of the run, in [0, 1], any shape; may be traced.

  Returns:
    float32, the shape of progress.

  Raises:
    ValueError: spec is not a scalar schedule.

  >>> print(schedule_value(((0.0, 100.0), (1.0, 50.0)), jnp.array([0.0, 0.5, 1.0])))
  [100.  75.  50.]
  """
  check_scalar(spec)
  progress = jnp.asarray(progress, jnp.float32)
  # `full`, not `asarray`: the result has the shape of progress for constants, too.
  if np.ndim(spec) == 0 or len(spec) == 1:
    value = spec if np.ndim(spec) == 0 else spec[0][1]  # a single knot is a constant
    return jnp.full(progress.shape, value, jnp.float32)
  # Static knots become constants of the program, so changing progress never recompiles.
  positions, values = jnp.asarray(np.asarray(spec, np.float32).T)
  # Before the first and after the last knot `interp` holds the end values.
  return jnp.interp(progress, positions, values)
