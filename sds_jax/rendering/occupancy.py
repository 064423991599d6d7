"""An occupancy grid over the field, and packing of the samples in occupied cells."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.prng import as_threefry
from sds_jax.types import Array, FieldFn, Params, PyTree


class Occupancy(PyTree):
  """A coarse grid over the cube [-bound, bound]^3.

  Attributes:
    density: [G, G, G] float32, a decaying maximum of the field's density in each cell; infinity in cells without an
      update yet, so that all cells of a new grid are occupied.
  """
  density: Array


def full_grid(resolution: int = 32) -> Occupancy:
  """Returns a grid with all cells occupied."""
  return Occupancy(jnp.full((resolution,) * 3, jnp.inf, jnp.float32))


def update(occupancy: Occupancy, field: FieldFn, params: Params, key: Array, turn: Array, *, bound: float,
           shares: int = 4, decay: float = 0.95) -> Occupancy:
  """Updates a share of the cells from the field.

  new = max(decay * old, density at a random point of the cell).

  Args:
    occupancy: the grid; G^3 must be a multiple of `shares`.
    field, params: the field and the field's parameters.
    key: consumed, for the points within the cells.
    turn: [] int32, number of earlier updates; selects the share `turn mod shares`.
    bound: half-width of the grid, world units.
    shares: number of updates after which every cell was updated once.
    decay: factor of the old density (instant-ngp: 0.95).
  """
  grid = occupancy.density
  resolution, count = grid.shape[0], grid.size // shares
  # A share is a strided subset, so each update touches the whole volume.
  cells = jnp.arange(count, dtype=jnp.int32) * shares + turn.astype(jnp.int32) % shares
  corner = jnp.stack(jnp.unravel_index(cells, grid.shape), axis=-1).astype(jnp.float32)
  jitter = jax.random.uniform(as_threefry(key), corner.shape, corner.dtype)
  points = (corner + jitter) * (2 * bound / resolution) - bound
  sampled = jax.lax.stop_gradient(field(params, points).density)
  old = grid.reshape(-1)[cells]
  # Infinity marks "no update yet" and would never decay.
  new = jnp.where(jnp.isinf(old), sampled, jnp.maximum(decay * old, sampled))
  return Occupancy(grid.reshape(-1).at[cells].set(new).reshape(grid.shape))


def occupied_cells(occupancy: Occupancy, threshold: float) -> Array:
  """Returns the occupied cells, bool [G, G, G].

  Cells denser than min(mean density, threshold) and their neighbours are occupied. The neighbours let surfaces grow.
  The mean keeps the densest cells of a field below the threshold everywhere, so a fading object still gets gradients.
  """
  grid = occupancy.density
  cells = grid > jnp.minimum(jnp.mean(grid), threshold)
  # Dilation axis by axis: three passes reach all 26 neighbours.
  for axis in range(3):
    padded = jnp.pad(cells, [(1, 1) if a == axis else (0, 0) for a in range(3)])
    size = cells.shape[axis]
    low, high = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
    cells = low | cells | high
  return cells


def look_up(cells: Array, points: tuple[Array, Array, Array], bound: float) -> Array:
  """Returns whether the cell of each point is occupied.

  Args:
    cells: bool [G, G, G] of `occupied_cells`.
    points: coordinate arrays (x, y, z) of the same shape, world units; points outside the cube use the nearest cell.
    bound: half-width of the grid, world units.
  """
  resolution = cells.shape[0]
  x, y, z = (
    jnp.clip((p + bound) * (resolution / (2 * bound)), 0, resolution - 1).astype(jnp.int32) for p in points)
  # Clipped above, so the gather needs no checks of its own.
  return cells.reshape(-1).at[(x * resolution + y) * resolution + z].get(mode="promise_in_bounds")


def pack(mask: Array, budget: int) -> tuple[Array, Array, Array]:
  """Returns the indices of the first true entries of `mask` [M].

  At most `budget` entries are taken.

  Returns:
    indices [budget] int32 in ascending order (M in the unused places at the end), the number [] int32 of used places,
    and the fraction [] of the true entries beyond the budget.
  """
  size = mask.shape[0]
  count = _running_count(mask)
  total = count[-1]
  # A scatter: entries beyond the budget are out of range and dropped. Every entry has a distinct place, so XLA may
  # scatter without locks; jnp.nonzero(size=...) scatters to colliding places instead.
  place = jnp.where(mask & (count <= budget), count - 1, budget + jnp.arange(size, dtype=jnp.int32))
  indices = jnp.full((budget,), size, jnp.int32).at[place].set(
    jnp.arange(size, dtype=jnp.int32), mode="drop", unique_indices=True)
  kept = jnp.minimum(total, budget)
  return indices, kept, (total - kept).astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)


def _running_count(mask: Array, row: int = 128) -> Array:
  """Computes the inclusive cumulative sum of `mask` [M] as int32."""
  # Two levels, the inner level a product with a triangular matrix: 3x faster than jnp.cumsum on CPUs. Exact in float32,
  # since the inner sums are at most `row`.
  rows = jnp.pad(mask, (0, -mask.shape[0] % row)).reshape(-1, row).astype(jnp.float32)
  inner = (rows @ jnp.triu(jnp.ones((row, row), jnp.float32))).astype(jnp.int32)
  before = jnp.cumsum(inner[:, -1]) - inner[:, -1]
  return (inner + before[:, None]).reshape(-1)[:mask.shape[0]]
