"""Packing against numpy; the grid against a ball of known radius."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.rendering import occupancy
from sds_jax.types import FieldOutput

RNG = np.random.default_rng(0)
BOUND, G = 0.8, 16


def ball(params, points):
  inside = jnp.sum(points**2, axis=-1) < params**2
  return FieldOutput(jnp.where(inside, 5.0, 0.0), jnp.zeros_like(points))


update = jax.jit(functools.partial(occupancy.update, bound=BOUND), static_argnums=1)


@pytest.mark.parametrize("size, share, budget", [(1000, 0.2, 300), (1000, 0.5, 300), (128, 1.0, 128), (77, 0.0, 10)])
def test_pack_keeps_the_first_true_entries(size, share, budget):
  mask = RNG.random(size) < share
  indices, kept, overflow = jax.jit(occupancy.pack, static_argnums=1)(jnp.asarray(mask), budget)
  expected = np.flatnonzero(mask)[:budget]
  assert kept == len(expected) and indices.shape == (budget,)
  np.testing.assert_array_equal(indices[:len(expected)], expected)
  assert (np.asarray(indices)[len(expected):] == size).all()
  np.testing.assert_allclose(overflow, max(mask.sum() - budget, 0) / max(mask.sum(), 1), atol=1e-6)


def centres():
  axis = (np.arange(G) + 0.5) / G * 2 * BOUND - BOUND
  return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def test_a_new_grid_is_full_and_all_shares_once_find_the_ball():
  grid, radius = occupancy.full_grid(G), jnp.float32(0.4)
  assert occupancy.occupied_cells(grid, 0.3).all()
  for turn in range(4):
    grid = update(grid, ball, radius, jax.random.key(turn), jnp.int32(turn))
  assert np.isfinite(grid.density).all()
  cells = np.asarray(occupancy.occupied_cells(grid, 0.3))
  distance = np.linalg.norm(centres(), axis=-1)
  half_diagonal = BOUND / G * np.sqrt(3)
  assert cells[distance < 0.4].all()
  assert not cells[distance > 0.4 + 4 * half_diagonal].any() and 0.1 < cells.mean() < 0.5


def test_cells_decay_once_empty_and_return():
  grid = occupancy.full_grid(G)
  for turn in range(4):
    grid = update(grid, ball, jnp.float32(0.4), jax.random.key(turn), jnp.int32(turn))
  before = np.asarray(grid.density)
  for turn in range(4):
    grid = update(grid, ball, jnp.float32(0.0), jax.random.key(turn), jnp.int32(turn))
  np.testing.assert_allclose(grid.density, before * 0.95, rtol=1e-6)


def test_a_thin_field_keeps_its_densest_cells():
  density = jnp.full((G,) * 3, 1e-6).at[5, 5, 5].set(1e-4)
  cells = np.asarray(occupancy.occupied_cells(occupancy.Occupancy(density), 0.3))
  expected = np.zeros((G,) * 3, bool)
  expected[4:7, 4:7, 4:7] = True  # the cell and its neighbours
  np.testing.assert_array_equal(cells, expected)


def test_look_up_finds_the_cell_of_a_point():
  cells = RNG.random((G, G, G)) < 0.5
  points = tuple(jnp.asarray(centres()[..., axis], jnp.float32) for axis in range(3))
  occupied = occupancy.look_up(jnp.asarray(cells), points, BOUND)
  np.testing.assert_array_equal(occupied, cells)
