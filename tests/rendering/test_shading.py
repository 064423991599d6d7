"""Shading against the formula, point by point."""
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.rendering.shading import shade
from sds_jax.views.lights import ALBEDO, LAMBERTIAN, TEXTURELESS, Shading

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mode, ambient, diffuse", [
  (ALBEDO, 1.0, 0.0), (LAMBERTIAN, 0.1, 0.9), (TEXTURELESS, 0.1, 0.9)])
def test_shade_equals_the_formula(mode, ambient, diffuse):
  albedo, points, light = RNG.random((50, 3)), RNG.normal(size=(50, 3)) * 0.4, RNG.normal(size=(50, 3)) * 1.5
  normals = RNG.normal(size=(50, 3))
  normals /= np.linalg.norm(normals, axis=1, keepdims=True)
  expected = []
  for rho, n, mu, lamp in zip(albedo, normals, points, light, strict=True):
    cosine = n @ (lamp - mu) / np.linalg.norm(lamp - mu)
    expected.append((1.0 if mode == TEXTURELESS else rho) * (ambient + diffuse * max(0.0, cosine)) * np.ones(3))
  shading = Shading(jnp.int32(mode), jnp.float32(ambient), jnp.float32(diffuse))
  result = shade(*(jnp.asarray(x, jnp.float32) for x in (albedo, normals, points, light)), shading)
  np.testing.assert_allclose(result, expected, atol=1e-5)
