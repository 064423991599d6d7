"""Encodings against their formula and against Monte Carlo."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields import encodings

POINTS = np.random.default_rng(0).uniform(-0.8, 0.8, (7, 3)).astype(np.float32)


def reference(points, octaves, base):
  rows = [points]
  for octave in range(octaves):
    angle = base * 2.0**octave * points.astype(np.float64)
    rows += [np.sin(angle), np.cos(angle)]
  return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("octaves, base", [(1, 1.0), (5, np.pi), (8, 1.0)])
def test_sines_and_cosines_octave_by_octave(octaves, base):
  encoded = encodings.positional_encoding(jnp.asarray(POINTS), octaves, base)
  assert encoded.shape == (7, 3 + 6 * octaves)
  np.testing.assert_allclose(encoded, reference(POINTS, octaves, base), atol=2e-5 * 2**max(octaves - 5, 0))


def test_sin_pi_and_its_derivatives():
  z = np.concatenate([np.linspace(-9.0, 9.0, 4001), [0.5, 1.0, 1.5, 2.0, -0.5, 1000.25]]).astype(np.float32)
  first = jax.grad(encodings.sin_pi)
  angle = np.pi * z.astype(np.float64)
  np.testing.assert_allclose(encodings.sin_pi(jnp.asarray(z)), np.sin(angle), atol=3e-7)
  np.testing.assert_allclose(jax.vmap(first)(jnp.asarray(z)), np.pi * np.cos(angle), atol=5e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(first))(jnp.asarray(z)), -np.pi**2 * np.sin(angle), atol=2e-4)


def test_integrated_encoding_is_the_mean_over_the_gaussian():
  variance, octaves = 0.01, 3
  rng = np.random.default_rng(1)
  clouds = [point + rng.normal(scale=np.sqrt(variance), size=(200_000, 3)) for point in POINTS]
  expected = np.stack([reference(cloud, octaves, 2.0).mean(0) for cloud in clouds])
  encoded = encodings.integrated_positional_encoding(jnp.asarray(POINTS), jnp.float32(variance), octaves, 2.0)
  np.testing.assert_allclose(encoded, expected, atol=8e-3)
  assert np.abs(reference(POINTS, octaves, 2.0) - expected).max() > 0.2  # undamped would not pass


def test_variance_may_differ_between_points():
  variances = jnp.linspace(0.0, 0.02, 7)
  together = encodings.integrated_positional_encoding(jnp.asarray(POINTS), variances, 4)
  for i in range(7):
    alone = encodings.integrated_positional_encoding(jnp.asarray(POINTS[i:i + 1]), variances[i], 4)
    np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_annealing_is_linear_then_constant():
  values = jax.vmap(encodings.annealed_variance)(jnp.array([0.0, 1 / 6, 1 / 3, 1.0]))
  np.testing.assert_allclose(values, [5e-2, 2.6e-2, 2e-3, 2e-3], rtol=1e-4)
