"""Multiresolution hash grid (instant-ngp, arXiv 2201.05989) in plain JAX, twice differentiable."""
from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.types import Array, Params

# The first factor is 1, so that neighbours along x share cache lines (instant-ngp, section 3).
_PRIMES = (1, 2654435761, 805459861)
_CORNERS = tuple((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1))


def level_resolutions(levels: int, coarsest: int, finest: int) -> tuple[int, ...]:
  """Returns the number of cells along an axis by level.

  The resolutions form a geometric progression (eq. 2-3).
  """
  # 1e-6 before flooring: coarsest * growth^level may come out just below a whole number.
  growth = (finest / coarsest)**(1 / max(levels - 1, 1))
  return tuple(int(math.floor(coarsest * growth**level + 1e-6)) for level in range(levels))


def table_rows(resolution: int, log2_table: int) -> int:
  """Returns the number of rows of a level's table.

  One row per vertex if all vertices fit, else 2^log2_table rows.
  """
  return min((resolution + 1)**3, 2**log2_table)


def vertex_row(vertex: Array, resolution: int, log2_table: int) -> Array:
  """Returns the table rows [...] of vertices [..., 3] uint32.

  A dense level has one row for each vertex; other levels use the spatial hash of eq. 4.
  """
  if (resolution + 1)**3 <= 2**log2_table:
    side = resolution + 1
    return (vertex[..., 0] * side + vertex[..., 1]) * side + vertex[..., 2]
  # uint32 products wrap around, as in the reference implementation.
  x, y, z = (vertex[..., axis] * jnp.uint32(prime) for axis, prime in enumerate(_PRIMES))
  return (x ^ y ^ z) & jnp.uint32(2**log2_table - 1)


def interpolate(table: Array, positions: Array, resolution: int, log2_table: int, smooth: bool) -> Array:
  """Interpolates the features [N, F] of a level.

  `positions` are [N, 3] in [0, 1]. Trilinear without `smooth`. With `smooth`, fractions pass through 3 w^2 - 2 w^3:
  first derivatives are continuous and second derivatives do not vanish inside a cell (instant-ngp, Appendix A).
  """
  scaled = positions * resolution
  # Clipped to the last cell, so that position 1 lies inside a cell and not in the next one.
  lowest = jnp.clip(jnp.floor(jax.lax.stop_gradient(scaled)), 0, resolution - 1)
  fraction = scaled - lowest
  if smooth:
    fraction = fraction * fraction * (3 - 2 * fraction)
  lowest = lowest.astype(jnp.uint32)
  # Corner by corner: gathering all eight at once would hold an [N, 8, F] array.
  total = jnp.zeros((positions.shape[0], table.shape[1]), table.dtype)
  for corner in _CORNERS:
    row = vertex_row(lowest + jnp.array(corner, jnp.uint32)[None], resolution, log2_table)
    weight = math.prod((fraction[:, axis] if corner[axis] else 1 - fraction[:, axis]) for axis in range(3))
    # Every row is in the table by construction, so no clamping is needed.
    total += weight[:, None] * table.at[row].get(mode="promise_in_bounds")
  return total


def open_levels(params: Params, number: Array) -> Params:
  """Masks the fine levels of a `HashGridField`.

  Returns parameters with only the `number` [] coarsest levels. The tables of finer levels are multiplied by zero. The
  encoding is linear in the tables, so the features of those levels are zero and the tables get no gradient (the
  progressive bands of Neuralangelo, arXiv 2306.03092, and of threestudio). A fraction of a level rounds down.
  """
  # Multiplied, not cut off: `number` is traced, and shapes must stay static.
  def is_open(name):
    # 1e-3: a schedule in float32 may reach a whole number from just below.
    return (int(name.removeprefix("level_")) < jnp.floor(number + 1e-3)).astype(jnp.float32)

  tables = {name: table * is_open(name) for name, table in params["HashGrid_0"].items()}
  return {**params, "HashGrid_0": tables}


def _small_uniform(key: Array, shape: tuple[int, ...]) -> Array:
  """Draws initial features uniform in [-1e-4, 1e-4], as instant-ngp."""
  # float32, because the gradient is a scatter-add: bfloat16 loses small terms, and is slow where many points meet.
  return jax.random.uniform(key, shape, jnp.float32, -1e-4, 1e-4)


class HashGrid(nn.Module):
  """A multiresolution hash encoding: points [N, 3] in [-bound, bound] -> features [N, levels * features].

  Attributes:
    levels, features: number of levels, and of features per level.
    coarsest, finest: cells along an axis at the first and the last level.
    log2_table: log2 of the largest number of rows of a level; levels with more vertices are hashed.
    bound: half-width of the cube, world units.
    smooth: smoothstep instead of trilinear weights; needed to differentiate normals.
  """
  levels: int = 8
  features: int = 2
  coarsest: int = 8
  finest: int = 128
  log2_table: int = 17
  bound: float = 0.8
  smooth: bool = True

  @nn.compact
  def __call__(self, points: Array) -> Array:
    # Differences for normals step out of the cube, and under "promise_in_bounds" no row may lie beyond the table.
    positions = jnp.clip(points / (2 * self.bound) + 0.5, 0.0, 1.0)
    out = []
    for level, resolution in enumerate(level_resolutions(self.levels, self.coarsest, self.finest)):
      shape = (table_rows(resolution, self.log2_table), self.features)
      table = self.param(f"level_{level}", _small_uniform, shape)
      out.append(interpolate(table, positions, resolution, self.log2_table, self.smooth))
    return jnp.concatenate(out, axis=-1)


class HashGridField(nn.Module):
  """A hash grid followed by a small MLP: points [N, 3] -> (density logit [N], albedo logits [N, 3]).

  One dense level is a plain feature grid: `levels=1, coarsest=R, finest=R`.

  Attributes:
    levels, features, coarsest, finest, log2_table, bound, smooth: see `HashGrid`.
    hidden, depth: width and number of the MLP's hidden layers.
  """
  levels: int = 8
  features: int = 2
  coarsest: int = 8
  finest: int = 128
  log2_table: int = 17
  bound: float = 0.8
  smooth: bool = True
  hidden: int = 32
  depth: int = 1

  @nn.compact
  def __call__(self, points: Array, variance: Array | None = None) -> tuple[Array, Array]:
    del variance  # only the positional encoding of the MLPs can be averaged over a Gaussian
    x = HashGrid(self.levels, self.features, self.coarsest, self.finest, self.log2_table, self.bound,
                 self.smooth)(points)
    for _ in range(self.depth):
      x = nn.silu(nn.Dense(self.hidden, kernel_init=nn.initializers.he_uniform())(x))
    out = nn.Dense(4)(x)
    return out[:, 0], out[:, 1:]
