"""Which noise level each example of a batch gets.

In configurations time is a fraction of the schedule in [0, 1]; a network of T training steps calls the fraction f
index floor(f T). Draws depend on the key of the step and on an example's global index in the whole batch, never on how
the batch is laid out, so that one device and many devices draw the same.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.diffusion.scalars import ScalarSpec, schedule_value
from sds_jax.types import Array

TRange = tuple[Array | float, Array | float]


def to_index(fraction: Array, num_steps: int) -> Array:
  """Fraction of the schedule, any shape, as the integer time in 0 .. num_steps - 1, int32."""
  return jnp.clip(jnp.floor(fraction * num_steps), 0, num_steps - 1).astype(jnp.int32)


def uniform(key: Array, index: Array, t_range: TRange, num_steps: int, batch_size: int | None = None) -> Array:
  """Independent t for each example, uniform in the range.

  Args:
    key: of the step; example i consumes fold_in(key, i). Give it to nothing else.
    index: [B] integer, the examples' indices in the whole (global) batch.
    t_range: (low, high), fractions in [0, 1] with low <= high; may be traced. low = high is allowed.
    num_steps: T, length of the schedule.
    batch_size: not needed; there so that all samplers are called alike.

  Returns:
    t: [B] int32 in 0 .. T-1.
  """
  u = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(index)
  return _within(u, t_range, num_steps)


def stratified(key: Array, index: Array, t_range: TRange, num_steps: int, batch_size: int) -> Array:
  """One t in each of batch_size strata of the range: u_i = (i / batch_size + u) mod 1 with one shared uniform u.

  Each t alone is still uniform in the range, but a batch covers it evenly, which lowers the variance of the gradient
  (arXiv:2107.00630, appendix I.1).

  Args:
    key: of the step; consumed for the shared shift, the same on all devices. Give it to nothing else.
    index, t_range, num_steps: as in `uniform`.
    batch_size: number of examples in the whole (global) batch, static.

  Returns:
    t: [B] int32 in 0 .. T-1.
  """
  shift = jax.random.uniform(key)
  u = (index.astype(jnp.float32) / batch_size + shift) % 1.0
  return _within(u, t_range, num_steps)


SAMPLERS = {"uniform": uniform, "stratified": stratified}


def _within(u: Array, t_range: TRange, num_steps: int) -> Array:
  low, high = t_range
  return to_index(low + u * (high - low), num_steps)


WARPS = {"linear": lambda progress: progress, "sqrt": jnp.sqrt}
"""How fast an annealed range moves: in step with the run, or fast at first (HiFA, arXiv:2305.18766)."""


def annealed_range(t_min: ScalarSpec, t_max: ScalarSpec, progress: Array | float, warp: str = "linear") -> TRange:
  """The range of t at a moment of the run.

  Args:
    t_min, t_max: scalar schedules of the two ends, fractions in [0, 1]; static. Constants give a range that stays;
      t_min=0.02, t_max=((0, 0.98), (1, 0.5)) comes down linearly; t_min = t_max is a t with no randomness.
    progress: fraction of the run that is done, in [0, 1]; may be traced.
    warp: "linear", or "sqrt" for a knot's position measured in the square root of progress.

  Returns:
    (low, high), float32 scalars, for the samplers of this file.

  Raises:
    ValueError: unknown warp or malformed schedule.
  """
  if warp not in WARPS:
    raise ValueError(f"warp {warp!r} is not known; legal: {', '.join(WARPS)}")
  warped = WARPS[warp](jnp.asarray(progress, jnp.float32))
  return schedule_value(t_min, warped), schedule_value(t_max, warped)
