"""The hash grid against loops over vertices, the derivatives against finite differences in float64."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields import hashgrid

RNG = np.random.default_rng(0)
SIZES = dict(levels=3, features=2, coarsest=3, finest=12, log2_table=9, bound=0.8)
GRID, FIELD = hashgrid.HashGrid(**SIZES), hashgrid.HashGridField(**SIZES, hidden=4, depth=1)
INIT_FIELD, APPLY_GRID = jax.jit(FIELD.init), jax.jit(GRID.apply)


def loop(table, position, resolution, log2_table, smooth):
  """Interpolates one point, vertex by vertex, with Python's unbounded integers."""
  scaled = position.astype(np.float64) * resolution
  lowest = np.minimum(np.floor(scaled), resolution - 1).astype(int)
  w = scaled - lowest
  w = 3 * w**2 - 2 * w**3 if smooth else w
  total = np.zeros(table.shape[1])
  for corner in itertools.product((0, 1), repeat=3):
    x, y, z = (int(a) + b for a, b in zip(lowest, corner, strict=True))
    if (resolution + 1)**3 <= 2**log2_table:
      row = x * (resolution + 1)**2 + y * (resolution + 1) + z
    else:
      row = ((x * 1) ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % 2**log2_table
    total += np.prod([w[a] if corner[a] else 1 - w[a] for a in range(3)]) * table[row]
  return total


@pytest.mark.parametrize("resolution, log2_table", [(4, 10), (37, 10)], ids=["dense", "hashed"])
@pytest.mark.parametrize("smooth", [False, True])
def test_interpolation_equals_the_loop(resolution, log2_table, smooth):
  table = RNG.normal(size=(hashgrid.table_rows(resolution, log2_table), 2)).astype(np.float32)
  positions = np.concatenate([RNG.uniform(size=(20, 3)), [[0, 0, 0], [1, 1, 1], [1, 0, 0.5]]]).astype(np.float32)
  features = jax.jit(hashgrid.interpolate, static_argnums=(2, 3, 4))(table, positions, resolution, log2_table, smooth)
  expected = [loop(table, position, resolution, log2_table, smooth) for position in positions]
  np.testing.assert_allclose(features, expected, atol=2e-5)


def test_resolutions_are_geometric():
  assert hashgrid.level_resolutions(5, 8, 128) == (8, 16, 32, 64, 128)
  assert hashgrid.level_resolutions(1, 48, 48) == (48,)


def test_levels_are_concatenated_over_the_cube():
  points = jnp.asarray(RNG.uniform(-0.8, 0.8, (5, 3)), jnp.float32)
  params = jax.jit(GRID.init)(jax.random.key(0), points)
  encoded = APPLY_GRID(params, points)
  assert encoded.shape == (5, 6)
  for level, resolution in enumerate((3, 6, 12)):
    table = np.asarray(params["params"][f"level_{level}"])
    assert table.shape[0] == min((resolution + 1)**3, 512) and 0 < np.abs(table).max() <= 1e-4
    expected = [loop(table, np.asarray(p) / 1.6 + 0.5, resolution, 9, True) for p in points]
    np.testing.assert_allclose(encoded[:, 2 * level:2 * level + 2], expected, atol=1e-8)


def test_first_and_second_derivatives_in_float64():
  resolution, log2_table, h = 5, 7, 1e-5
  with jax.enable_x64(True):
    table = RNG.normal(size=(hashgrid.table_rows(resolution, log2_table), 1))
    point = np.array([0.33, 0.71, 0.52])
    direction = RNG.normal(size=table.shape)

    @jax.jit
    def value(table, p):
      return hashgrid.interpolate(table, p[None], resolution, log2_table, True)[0, 0]

    gradient, hessian = jax.jit(jax.jacfwd(value, 1)), jax.jit(jax.jacfwd(jax.jacrev(value, 1), 1))
    steps = h * np.eye(3)
    numeric = [(value(table, point + e) - value(table, point - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(gradient(table, point), numeric, rtol=1e-7)
    numeric = np.stack([(gradient(table, point + e) - gradient(table, point - e)) / (2 * h) for e in steps], axis=1)
    np.testing.assert_allclose(hessian(table, point), numeric, rtol=1e-6, atol=1e-6)
    # d/dtable of |d value / dx|^2, as in a loss on normals.
    square = jax.jit(jax.value_and_grad(lambda table: jnp.sum(jax.grad(value, 1)(table, point)**2)))
    numeric = (square(table + h * direction)[0] - square(table - h * direction)[0]) / (2 * h)
    np.testing.assert_allclose(np.sum(square(table)[1] * direction), numeric, rtol=1e-6)
    assert abs(numeric) > 1e-2


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def gradient_of_square(p, points, number):
  """Returns the gradient of the squared albedo of the field with `number` open levels, and the albedo."""
  albedo = FIELD.apply({"params": hashgrid.open_levels(p, number)}, points)[1]
  return jnp.sum(albedo**2), albedo


@pytest.mark.parametrize("number, open_count", [(1.0, 1), (1.9, 1), (2.0, 2), (3.0, 3)])
def test_masked_levels_give_zeros_and_get_no_gradient(number, open_count):
  """Compares with an MLP in numpy after zeroing the masked levels' features."""
  points = jnp.asarray(RNG.uniform(-0.8, 0.8, (5, 3)), jnp.float32)
  params = INIT_FIELD(jax.random.key(0), points)["params"]
  params = {**params, "HashGrid_0": jax.tree.map(lambda t: np.float32(1e4) * np.asarray(t), params["HashGrid_0"])}
  features = np.array(APPLY_GRID({"params": params["HashGrid_0"]}, points))  # tested above
  features[:, 2 * open_count:] = 0
  first, last = jax.tree.map(np.asarray, (params["Dense_0"], params["Dense_1"]))
  x = features @ first["kernel"] + first["bias"]
  x = x / (1 + np.exp(-x)) @ last["kernel"] + last["bias"]

  gradient, albedo = gradient_of_square(params, points, jnp.float32(number))
  np.testing.assert_allclose(albedo, x[:, 1:], atol=1e-4)
  opened = [bool(np.any(np.asarray(gradient["HashGrid_0"][f"level_{i}"]))) for i in range(3)]
  assert opened == [i < open_count for i in range(3)]
