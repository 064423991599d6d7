"""The objective of score distillation over two modes: a single basin at high noise, a basin per mode at low noise."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.testbed import kl_divergence, laws

MODES, WEIGHTS = (-1.0, 1.0), (0.4, 0.6)
LAW = laws.Mixture(jnp.array(WEIGHTS), jnp.array(MODES)[:, None], jnp.full(2, 0.1))
MEAN = float(np.dot(WEIGHTS, MODES))
HIGH, LOW = 950, 100


@pytest.fixture(scope="module")
def slope(schedule):
  """Returns a compiled function (x [N], t [] integer) -> expected residual [N]."""
  def single(x, t):
    return kl_divergence.expected_residual(LAW, x[None], schedule.alpha[t], schedule.sigma[t])[0]
  return jax.jit(jax.vmap(single, in_axes=(0, None)))


def test_one_basin_at_high_noise_and_one_for_each_mode_at_low_noise(slope):
  """Finds rising zeros of the expected residual on a grid of 0.02."""
  grid = np.linspace(-3.0, 3.0, 301, dtype=np.float32) + np.float32(1e-3)
  basins = {}
  for t in (HIGH, LOW):
    value = np.asarray(slope(jnp.asarray(grid), jnp.int32(t)))
    basins[t] = grid[:-1][(value[:-1] < 0) & (value[1:] > 0)]
  np.testing.assert_allclose(basins[HIGH], [MEAN], atol=0.05)
  np.testing.assert_allclose(basins[LOW], MODES, atol=0.05)


def test_descent_from_high_to_low_noise_ends_in_a_mode_from_any_start(slope):
  """Checks a common end in the heavier mode with annealing, and the mode on its own side at low noise alone."""
  starts = jnp.array([-3.0, -1.0, -0.3, 0.3, 1.0, 3.0])

  @jax.jit
  def descend(times):
    return jax.lax.scan(lambda x, t: (x - 0.2 * slope(x, t), None), starts, times)[0]

  annealed = descend(jnp.asarray(np.linspace(HIGH, LOW, 200), jnp.int32))
  np.testing.assert_allclose(annealed, np.full(6, MODES[1]), atol=0.05)
  np.testing.assert_allclose(descend(jnp.full(200, LOW)), np.sign(starts), atol=0.05)
