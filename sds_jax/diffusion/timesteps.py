"""Samplers of the noise level of each example in a batch.

In configurations time is a fraction of the schedule in [0, 1]; for a network of T training steps the fraction f means
the index floor(f T). Draws depend on the key of the step and on the global index of an example in the whole batch,
never on the layout of the batch, so any number of devices draws the same values.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.diffusion import weightings
from sds_jax.diffusion.checks import check_t_range
from sds_jax.diffusion.scalars import ScalarSpec, schedule_value
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Schedule

TRange = tuple[Array | float, Array | float]


def to_index(fraction: Array, num_steps: int) -> Array:
  """Converts a fraction of the schedule to an integer time.

  The shape may be any; the times are int32 in 0 .. num_steps - 1.

  >>> print(to_index(jnp.array([0.0, 0.5, 1.0]), 1000))
  [  0 500 999]
  """
  # A fraction of exactly 1 belongs to the last step.
  return jnp.clip(jnp.floor(fraction * num_steps), 0, num_steps - 1).astype(jnp.int32)


def uniform(key: Array, index: Array, t_range: TRange, num_steps: int, batch_size: int | None = None) -> Array:
  """Draws independent uniform times.

  Args:
    key: of the step; example i consumes fold_in(key, i). Use the key for no other purpose.
    index: [B] integer, indices of the examples in the whole (global) batch.
    t_range: (low, high), fractions in [0, 1] with low <= high; may be traced. low = high is allowed.
    num_steps: T, length of the schedule.
    batch_size: unused; part of the common signature of all samplers.

  Returns:
    t: [B] int32 in 0 .. T-1.

  Raises:
    ValueError: t_range is not such a pair, where its values are known.

  Example:
    >>> print(uniform(jax.random.key(0), jnp.arange(3), (0.5, 0.5), 1000))
    [500 500 500]
  """
  return _within(_uniforms(key, index), t_range, num_steps)


def stratified(key: Array, index: Array, t_range: TRange, num_steps: int, batch_size: int) -> Array:
  """Draws a time in each of batch_size strata of the range.

  u_i = (i / batch_size + u) mod 1 with a shared uniform u. Each t is still uniform in the range, and a batch covers the
  range evenly, with a lower variance of the gradient (arXiv:2107.00630, appendix I.1).

  Args:
    key: of the step; consumed for the shared shift, the same on all devices. Use the key for no other purpose.
    index, t_range, num_steps: as for `uniform`.
    batch_size: number of examples in the whole (global) batch, static.

  Returns:
    t: [B] int32 in 0 .. T-1.

  Example: a time in each quarter.
    >>> print(sorted((stratified(jax.random.key(0), jnp.arange(4), (0.0, 1.0), 1000, 4) // 250).tolist()))
    [0, 1, 2, 3]
  """
  # Modulo 1 keeps each u uniform although all share the shift.
  shift = jax.random.uniform(as_threefry(key), dtype=jnp.float32)
  u = (index.astype(jnp.float32) / batch_size + shift) % 1.0
  return _within(u, t_range, num_steps)


def antithetic(key: Array, index: Array, t_range: TRange, num_steps: int, batch_size: int | None = None) -> Array:
  """Draws antithetic pairs of times.

  Examples 2 i and 2 i + 1 get u and 1 - u.

  Each t is still uniform in the range, and deviations from the middle cancel in a pair (antithetic variates).

  Args:
    key: of the step; pair i consumes fold_in(key, i). Use the key for no other purpose.
    index, t_range, num_steps, batch_size: as for `uniform`. The last example of an odd batch has no partner.

  Returns:
    t: [B] int32 in 0 .. T-1.

  Example: the mean of a pair is the middle of the range.
    >>> print(antithetic(jax.random.key(0), jnp.arange(4), (0.0, 1.0), 1000).reshape(2, 2).sum(1))
    [999 999]
  """
  # Both partners of a pair fold in the same number.
  u = _uniforms(key, index // 2)
  return _within(jnp.where(index % 2 == 0, u, 1 - u), t_range, num_steps)


SAMPLERS = {"uniform": uniform, "stratified": stratified, "antithetic": antithetic}
"""Name -> sampler (key, index, t_range, num_steps, batch_size) -> t [B]."""


def _uniforms(key: Array, index: Array) -> Array:
  """Draws a number in [0, 1) for each example, [B] float32."""
  key = as_threefry(key)
  # float32 by name: with jax_enable_x64 the default would be float64, with other draws.
  return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), dtype=jnp.float32))(index)


def _within(u: Array, t_range: TRange, num_steps: int) -> Array:
  check_t_range(t_range, num_steps)
  low, high = t_range
  return to_index(low + u * (high - low), num_steps)


WARPS = {"linear": lambda progress: progress, "sqrt": jnp.sqrt}
"""Pace of an annealed range: constant over the run, or fast at first (HiFA, arXiv:2305.18766)."""


def annealed_range(t_min: ScalarSpec, t_max: ScalarSpec, progress: Array | float, warp: str = "linear") -> TRange:
  """Computes the range of t at a moment of the run.

  Args:
    t_min, t_max: scalar schedules of the two ends, fractions in [0, 1]; static. Constants give a constant range;
      t_min=0.02, t_max=((0, 0.98), (1, 0.5)) falls linearly; t_min = t_max gives a deterministic t.
    progress: finished fraction of the run, in [0, 1]; may be traced.
    warp: "linear", or "sqrt" for knots at the square root of the progress.

  Returns:
    (low, high), float32 scalars, for the samplers of the module.

  Raises:
    ValueError: unknown warp, or not a scalar schedule.

  Example: half of the fall after a quarter of the run.
    >>> low, high = annealed_range(0.02, ((0.0, 0.98), (1.0, 0.5)), 0.25, "sqrt")
    >>> print(f"{low:.2f} {high:.2f}")
    0.02 0.74
  """
  if warp not in WARPS:
    raise ValueError(f"warp {warp!r} is not known; legal: {', '.join(WARPS)}")
  # Warping the progress, not the knots, keeps the knots as typed by the user.
  warped = WARPS[warp](jnp.asarray(progress, jnp.float32))
  return schedule_value(t_min, warped), schedule_value(t_max, warped)


def dreamtime(schedule: Schedule, progress: Array | float, m1: float = 0.8, m2: float = 0.5, s1: float = 0.3,
              s2: float = 0.1) -> Array:
  """Computes the deterministic, falling t of DreamTime.

  The fall is slow at large weights W(t).

  The weights at and above t sum to `progress` of all weights (arXiv:2306.12422, eq. 7). The weight is part of the pace,
  so use w(t) = 1 (`weightings.uniform`). `weightings.dreamtime` defines W.

  Args:
    schedule: of the prior.
    progress: finished fraction of the run, in [0, 1], any shape; may be traced.
    m1, m2, s1, s2: parameters of W, fractions of the schedule.

  Returns:
    fraction of the schedule, float32, the shape of progress; the unit of `annealed_range`.

  Example:
    >>> from sds_jax.diffusion.schedules import schedule_from_config
    >>> schedule = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    >>> print([f"{t:.2f}" for t in dreamtime(schedule, jnp.array([0.25, 0.5, 0.75]))])
    ['0.83', '0.68', '0.53']
  """
  steps = schedule.alpha.shape[0]
  weight = weightings.dreamtime(schedule, jnp.arange(steps), m1, m2, s1, s2)
  # The run starts at the largest t, so weights are summed from the last time downwards.
  from_above = jnp.cumsum(weight[::-1])  # over t = T - 1, T - 2, ...
  # Rounding can put progress = 1 past the last index; the clip below covers this case.
  passed = jnp.searchsorted(from_above / from_above[-1], jnp.asarray(progress, jnp.float32))
  return (steps - 1 - jnp.clip(passed, 0, steps - 1)).astype(jnp.float32) / steps
