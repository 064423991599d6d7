"""Encodings against the formulas, Monte Carlo and SciPy."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sds_jax.fields import encodings

POINTS = np.random.default_rng(0).uniform(-0.8, 0.8, (7, 3)).astype(np.float32)


INTEGRATED = jax.jit(encodings.integrated_positional_encoding, static_argnums=(2, 3))


def reference(points, octaves, base):
  rows = [points]
  for octave in range(octaves):
    angle = base * 2.0**octave * points.astype(np.float64)
    rows += [np.sin(angle), np.cos(angle)]
  return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("octaves, base", [(1, 1.0), (5, np.pi), (8, 1.0)])
def test_sines_and_cosines_octave_by_octave(octaves, base):
  encoded = jax.jit(encodings.positional_encoding, static_argnums=(1, 2))(POINTS, octaves, base)
  assert encoded.shape == (7, 3 + 6 * octaves)
  np.testing.assert_allclose(encoded, reference(POINTS, octaves, base), atol=2e-5 * 2**max(octaves - 5, 0))


def test_sin_pi_and_its_derivatives():
  z = np.concatenate([np.linspace(-9.0, 9.0, 4001), [0.5, 1.0, 1.5, 2.0, -0.5, 1000.25]]).astype(np.float32)
  first = jax.grad(encodings.sin_pi)
  second = jax.jit(jax.vmap(jax.grad(first)))
  angle = np.pi * z.astype(np.float64)
  np.testing.assert_allclose(encodings.sin_pi(jnp.asarray(z)), np.sin(angle), atol=3e-7)
  np.testing.assert_allclose(jax.jit(jax.vmap(first))(jnp.asarray(z)), np.pi * np.cos(angle), atol=5e-6)
  np.testing.assert_allclose(second(jnp.asarray(z)), -np.pi**2 * np.sin(angle), atol=2e-4)


def test_integrated_encoding_is_the_mean_over_the_gaussian():
  variance, octaves = 0.01, 3
  rng = np.random.default_rng(1)
  clouds = [point + rng.normal(scale=np.sqrt(variance), size=(200_000, 3)) for point in POINTS]
  expected = np.stack([reference(cloud, octaves, 2.0).mean(0) for cloud in clouds])
  encoded = INTEGRATED(POINTS, np.float32(variance), octaves, 2.0)
  np.testing.assert_allclose(encoded, expected, atol=8e-3)
  assert np.abs(reference(POINTS, octaves, 2.0) - expected).max() > 0.2  # the undamped encoding would fail


def test_variance_may_vary_by_point():
  variances = np.linspace(0.0, 0.02, 7, dtype=np.float32)
  batched = INTEGRATED(POINTS, variances, 4)
  for i in range(7):
    alone = INTEGRATED(POINTS[i:i + 1], variances[i], 4)
    np.testing.assert_allclose(batched[i], alone[0], atol=1e-5)


def harmonic(band, order, directions):
  """Computes a real spherical harmonic from Legendre's functions, without the Condon-Shortley phase."""
  x, y, z = directions.T.astype(np.float64)
  m, azimuth = abs(order), np.arctan2(y, x)
  norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
  wave = np.sin(m * azimuth) if order < 0 else np.cos(m * azimuth)
  return (-1)**m * norm * special.lpmv(m, band, z) * wave * (math.sqrt(2) if order else 1)


def test_spherical_harmonics_equal_scipy():
  directions = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  expected = [harmonic(band, order, directions) for band in range(4) for order in range(-band, band + 1)]
  harmonics = jax.jit(encodings.spherical_harmonics, static_argnums=1)(directions, 4)
  np.testing.assert_allclose(harmonics, np.stack(expected, axis=1), atol=2e-6)
  assert jax.eval_shape(lambda d: encodings.spherical_harmonics(d, 3), directions).shape == (50, 9)
  with pytest.raises(ValueError, match="degree must be 1 to 4, not 5"):
    encodings.spherical_harmonics(jnp.asarray(directions), 5)
