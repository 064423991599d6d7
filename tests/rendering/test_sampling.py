"""Ball intersection and sample distances."""
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.rendering import sampling
from sds_jax.types import Rays

RNG = np.random.default_rng(0)


def random_rays(count=200):
  origins = RNG.normal(size=(count, 3))
  directions = RNG.normal(size=(count, 3)) - 0.8 * origins
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  return Rays(jnp.asarray(origins, jnp.float32), jnp.asarray(directions, jnp.float32))


def test_one_sample_falls_into_each_interval():
  near, far = jnp.array([1.0, 2.0]), jnp.array([3.0, 2.5])
  t, width = sampling.stratified(near, far, 8, jnp.array([0.0, 0.99]))
  np.testing.assert_allclose(width, [0.25, 0.0625])
  for ray in range(2):
    edges = np.linspace(near[ray], far[ray], 9)
    np.testing.assert_array_equal(np.histogram(np.asarray(t[:, ray]) + 1e-6, bins=edges)[0], 1)


def test_jitter_makes_the_integral_unbiased():
  near, far, count = jnp.zeros(4000), jnp.ones(4000), 3
  jitter = jax.random.uniform(jax.random.key(0), (4000,))
  t, width = sampling.stratified(near, far, count, jitter)
  estimate = np.sum(np.asarray(t)**4 * np.asarray(width)[None], axis=0)
  np.testing.assert_allclose(estimate.mean(), 0.2, atol=4 * estimate.std() / 4000**0.5)
  midpoints = sampling.stratified(near, far, count, jnp.full((4000,), 0.5))[0]
  assert abs(np.sum(np.asarray(midpoints[:, 0])**4) / count - 0.2) > 0.015  # the error without jitter


def test_even_steps_cover_the_ball_with_one_width():
  rays = random_rays()
  t, width = sampling.even_steps(rays, 0.8, 16, jnp.full((200,), 0.5))
  np.testing.assert_allclose(width, 0.1, rtol=1e-5)
  o, d = np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64)
  inside = np.sum(np.linalg.norm(o[None] + np.asarray(t)[..., None] * d[None], axis=-1) < 0.8, axis=0)
  distance_squared = np.linalg.norm(np.cross(o, d), axis=-1)**2
  chord = 2.0 * np.sqrt(np.maximum(0.8**2 - distance_squared, 0.0))
  assert (chord > 0.0).sum() > 50 and (chord == 0.0).sum() > 20
  assert np.abs(inside * 0.1 - chord).max() <= 0.1 + 1e-5
