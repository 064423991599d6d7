"""Checks of arguments when a program is traced: shapes always, values where they are known."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.types import Array, Schedule


def known(value: Any) -> np.ndarray | None:
  """Returns the value of an array that is known at trace time, else None.

  The values of traced and of distributed arrays are not known.

  >>> print(known(jnp.arange(3)), jax.eval_shape(lambda t: [known(t)], 1.0))
  [0 1 2] [None]
  """
  if isinstance(value, jax.core.Tracer) or isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None
  # `device_get` is an explicit transfer, which jax_transfer_guard="disallow" permits.
  return np.asarray(jax.device_get(value))


def stop_gradient(tree: Any) -> Any:
  """Returns a pytree without gradients.

  Leaves that are no arrays, such as the functions of Equinox modules, stay.

  >>> print(stop_gradient((jnp.ones(2), "gelu", 0.5)))
  (Array([1., 1.], dtype=float32), 'gelu', 0.5)
  """
  arrays = (jax.Array, np.ndarray)
  return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, arrays) else leaf, tree)


def as_jax(values: Any) -> Array:
  """Returns any array as an array of JAX.

  An array of JAX stays as it is.

  Under `jit` jnp.asarray would make a traced value of a known array.

  >>> ones = jnp.ones(2)
  >>> print(as_jax(np.ones(2)), as_jax(ones) is ones)
  [1. 1.] True
  """
  return values if isinstance(values, jax.Array) else jnp.asarray(values)


def widened(*arrays: Array) -> jnp.dtype:
  """Returns float32, or float64 where an array is float64: the dtype of residuals.

  >>> print(widened(jnp.ones(1, jnp.float16)))
  float32
  """
  # A residual is a difference of nearly equal predictions: half precision would keep few of its digits.
  return jnp.dtype(jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32)


def check_schedule(schedule: Schedule) -> Schedule:
  """Returns the schedule with JAX arrays.

  Raises:
    ValueError: alpha and sigma are not of one shape [T] with T >= 1.

  >>> print(check_schedule(Schedule(alpha=np.ones(2), sigma=np.zeros(2))).sigma)
  [0. 0.]
  """
  if not (hasattr(schedule, "alpha") and hasattr(schedule, "sigma")):
    raise ValueError(f"schedule is a {type(schedule).__name__}; legal: a Schedule, such as of schedule_from_config")
  shapes = np.shape(schedule.alpha), np.shape(schedule.sigma)
  if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0] == (0,):
    raise ValueError(f"schedule.alpha has shape {shapes[0]} and schedule.sigma {shapes[1]}; legal: one shape (T,) with "
                     "T >= 1 times")
  tables = [as_jax(table) for table in (schedule.alpha, schedule.sigma)]
  tables = [table if jnp.issubdtype(table.dtype, jnp.floating) else table.astype(jnp.float32) for table in tables]
  if tables[0] is schedule.alpha and tables[1] is schedule.sigma:
    return schedule
  return Schedule(*tables)


def check_t_range(t_range: Any, num_steps: int) -> None:
  """Raises ValueError for a range that is no (low, high) with 0 <= low <= high <= 1.

  Only known values are checked.

  >>> check_t_range((20, 980), 1000)
  Traceback (most recent call last):
    ...
  ValueError: t_range=(20, 980) is not legal: fractions of the schedule with 0 <= low <= high <= 1, here (0.02, 0.98)
  """
  legal = "fractions of the schedule with 0 <= low <= high <= 1"
  if not isinstance(t_range, (tuple, list)) and getattr(t_range, "ndim", 0) < 1 or len(t_range) != 2:
    raise ValueError(f"t_range={t_range!r} is not legal: (low, high), {legal}")
  values = _known_ends(t_range)
  # A bound on one end alone is checked, too: often only the other end is annealed.
  low, high = (np.asarray(default) if value is None else value for value, default in zip(values, (0.0, 1.0)))
  slack = 1e-6  # rounding of an annealed end
  numbers = jnp.issubdtype(low.dtype, jnp.number) and jnp.issubdtype(high.dtype, jnp.number)
  if numbers and np.all((low >= 0) & (low <= high + slack) & (high <= 1 + slack)):
    return
  shown = [None if value is None else value.tolist() for value in values]
  # Times in place of fractions are the habit of diffusers.
  times = numbers and None not in shown and low.ndim == high.ndim == 0 and 0 <= low <= high <= num_steps and high > 1
  remedy = f", here ({low / num_steps:g}, {high / num_steps:g})" if times else ""
  written = ", ".join("traced" if value is None else repr(value) for value in shown)
  raise ValueError(f"t_range=({written}) is not legal: {legal}{remedy}")


def _known_ends(t_range: Any) -> list[np.ndarray | None]:
  """Returns the values of the two ends, None for a traced one."""
  # Slices of a known array would be traced under `jit`.
  array = None if isinstance(t_range, (tuple, list)) else known(t_range)
  return [known(end) for end in (t_range if array is None else array)]


def check_signal(schedule: Schedule, t: Array | None, t_range: Any) -> None:
  """Raises ValueError where a time that may be used is known to have alpha = 0.

  Args:
    schedule: with arrays of JAX.
    t: the times; None: drawn from t_range.
    t_range: fractions of the schedule.

  >>> half = Schedule(jnp.array([0.5, 0.0]), jnp.array([0.5, 1.0]))
  >>> check_signal(half, jnp.array([0]), (0.0, 1.0)), check_signal(half, None, (0.0, 0.4))
  (None, None)
  """
  alpha = known(schedule.alpha)
  if alpha is None:
    return
  if t is None:
    check_t_range(t_range, alpha.size)
    ends = _known_ends(t_range)
    if any(end is None for end in ends):
      return
    # Rounded as in `timesteps.to_index`: down, and the fraction 1 belongs to the last time.
    low, high = (int(min(np.max(end) * alpha.size, alpha.size - 1)) for end in ends)
    times = np.arange(low, high + 1)
  else:
    times = known(check_integers("t", t, np.size(t), alpha.size))
  if times is not None and np.any(alpha[times] == 0):
    at = int(np.min(times[alpha[times] == 0]))
    raise ValueError(f"weighting='sigma_over_alpha' is infinite at t={at}, where alpha is 0; legal: times below {at}, "
                     f"such as t_range=({t_range[0]}, {max((at - 0.5) / alpha.size, 0):g}), or another weighting")


def check_images(x: Any, *others: Any) -> Array:
  """Returns the images x [B, ...] as a JAX array.

  Args:
    x: the argument of `score_distillation`.
    others: arguments whose leaves have the batch axis of x, if they have one: t, index, cond.

  Raises:
    ValueError: x is no floating array with a batch axis.

  >>> print(check_images(jnp.ones((2, 8, 8, 3))).shape, check_images(jnp.ones((8, 8, 3)), jnp.arange(8)).shape)
  (2, 8, 8, 3) (8, 8, 3)
  """
  if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
    kind = getattr(x, "dtype", type(x).__name__)
    raise ValueError(f"x is of type {kind}; legal: a floating array [B, ...], the images in the prior's space")
  shape = x.shape
  if not shape or not shape[0]:
    raise ValueError(f"x has shape {shape}; legal: (B, ...) with B >= 1 examples")
  # Three axes are a batch of sequences or points, too, but rarely as square as an image.
  square = len(shape) == 3 and 4 <= max(shape[:2]) <= 3 * min(shape[:2])
  batched = any(np.shape(leaf)[:1] == shape[:1] for leaf in jax.tree.leaves(others) if hasattr(leaf, "dtype"))
  if square and shape[2] in (1, 3, 4) and not batched:
    raise ValueError(f"x has shape {shape}, one image without a batch axis; legal: (B, ...), here x[None] of shape "
                     f"{(1, *shape)}; for a batch of {shape[0]} sequences give index=jnp.arange({shape[0]})")
  return as_jax(x)


def check_integers(name: str, values: Any, batch: int, end: int | None = None) -> Array:
  """Returns values [B] as an integer array.

  Args:
    name: of the argument, for the errors.
    values: an array or a list.
    batch: B.
    end: the values lie in 0 .. end - 1, where they are known; None: any integer.

  Raises:
    ValueError: another shape, another dtype, or a value beyond the range.

  >>> print(check_integers("t", [3, 5], 2, 1000))
  [3 5]
  """
  if isinstance(values, (list, tuple)):
    # NumPy where no number is traced: under `jit` jnp.asarray would trace known numbers, and hide their range.
    values = (jnp if any(isinstance(value, jax.core.Tracer) for value in values) else np).asarray(values)
  legal = f"integers of shape ({batch},)" + (f" in 0 .. {end - 1}" if end else "") + ", one for each example of x"
  shape, dtype = np.shape(values), values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
  if shape != (batch,) or not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(f"{name} has shape {shape} and dtype {dtype}; legal: {legal}")
  actual = known(values) if end else None
  if actual is not None and np.any((actual < 0) | (actual >= end)):
    raise ValueError(f"{name} holds {actual[(actual < 0) | (actual >= end)][0]}; legal: {legal}")
  # Times are subtracted, which wraps around in unsigned integers.
  return as_jax(values) if np.dtype(dtype).kind == "i" else jnp.asarray(values, jnp.int32)


def check_factor(name: str, value: Any, batch: int, lowest: float | None = None) -> Array | float:
  """Returns a factor, a scalar or [B]; Python numbers stay.

  Args:
    name: of the argument, for the errors.
    value: a number or an array.
    batch: B.
    lowest: the least legal value, where values are known; None: any.

  Raises:
    ValueError: another shape, no number, or a value below the lowest.

  >>> print(check_factor("scale", np.ones(2), 2))
  [1. 1.]
  """
  legal = f"a number, or an array of shape ({batch},)" + ("" if lowest is None else f", at least {lowest:g}")
  number = isinstance(value, (int, float))
  if not number and not (hasattr(value, "dtype") and np.shape(value) in ((), (batch,))):
    shown = f"has shape {np.shape(value)}" if hasattr(value, "dtype") else f"is {value!r}"
    raise ValueError(f"{name} {shown}; legal: {legal}")
  actual = None if lowest is None else known(value)
  if actual is not None and not np.all(actual >= lowest):
    raise ValueError(f"{name} is {actual.min()}; legal: {legal}")
  if number:
    return value
  return as_jax(value) if jnp.issubdtype(value.dtype, jnp.floating) else jnp.asarray(value, jnp.float32)
