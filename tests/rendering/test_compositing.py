"""The quadrature against Beer-Lambert, a double loop, and itself with split intervals."""
import jax.numpy as jnp
import numpy as np

from sds_jax.rendering import compositing

DEPTHS = np.random.default_rng(0).exponential(0.3, (12, 5)).astype(np.float32)


def test_weights_equal_the_double_loop():
  steps, rays = DEPTHS.shape
  expected = np.zeros((steps, rays))
  for r in range(rays):
    through = 1.0
    for i in range(steps):
      alpha = 1 - np.exp(-float(DEPTHS[i, r]))
      expected[i, r] = through * alpha
      through *= 1 - alpha
  np.testing.assert_allclose(compositing.weights(jnp.asarray(DEPTHS)), expected, atol=1e-6)


def test_a_homogeneous_slab_follows_beer_lambert():
  sigma, thickness, steps = 1.7, 0.9, 32
  weights = compositing.weights(jnp.full((steps, 1), sigma * thickness / steps))
  np.testing.assert_allclose(weights.sum(), 1 - np.exp(-sigma * thickness), rtol=1e-5)


def test_weights_and_transmittance_sum_to_one():
  weights = compositing.weights(jnp.asarray(DEPTHS))
  np.testing.assert_allclose(weights.sum(0) + np.exp(-DEPTHS.sum(0)), 1.0, atol=1e-6)


def test_splitting_an_interval_changes_nothing():
  split = np.insert(DEPTHS, 4, DEPTHS[3] * 0.3, axis=0)
  split[3] *= 0.7
  weights, whole = compositing.weights(jnp.asarray(split)), compositing.weights(jnp.asarray(DEPTHS))
  np.testing.assert_allclose(weights[3] + weights[4], whole[3], atol=1e-6)
  np.testing.assert_allclose(weights[5:], whole[4:], atol=1e-6)
