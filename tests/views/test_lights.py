"""Lights and shading modes: ranges, frequencies, annealing."""
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.views import lights

N = 4000


def test_light_distance_and_direction():
  camera = jnp.array([2.0, 0.0, 2.0])
  draw = jax.jit(jax.vmap(lambda key: lights.sample_light(key, camera)))
  position = np.asarray(draw(jax.random.split(jax.random.key(0), N)))
  distance = np.linalg.norm(position, axis=1)
  assert 0.8 <= distance.min() < 0.81 and 1.49 < distance.max() <= 1.5
  direction = position / distance[:, None]
  # The mean direction of N(camera, I), drawn with NumPy.
  reference = np.random.default_rng(0).normal(size=(200_000, 3)) + np.asarray(camera)
  reference /= np.linalg.norm(reference, axis=1, keepdims=True)
  np.testing.assert_allclose(direction.mean(0), reference.mean(0), atol=0.03)


def test_modes_have_the_papers_frequencies_and_intensities():
  draw = jax.jit(jax.vmap(lambda key: lights.sample_shading(key, jnp.float32(0.5))))
  shading = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(1), N)))
  assert shading.mode.dtype == np.int32
  share = np.bincount(shading.mode, minlength=3) / N
  np.testing.assert_allclose(share, [0.25, 0.375, 0.375], atol=0.03)
  lit = shading.mode != lights.ALBEDO
  np.testing.assert_allclose(shading.ambient, np.where(lit, 0.1, 1.0), atol=1e-6)
  np.testing.assert_allclose(shading.diffuse, np.where(lit, 0.9, 0.0), atol=1e-6)


def test_first_part_of_training_is_albedo_only():
  draw = jax.jit(jax.vmap(lambda key, p: lights.sample_shading(key, p).mode, in_axes=(0, None)))
  keys = jax.random.split(jax.random.key(2), 500)
  assert (np.asarray(draw(keys, jnp.float32(0.06))) == lights.ALBEDO).all()
  assert (np.asarray(draw(keys, jnp.float32(0.07))) != lights.ALBEDO).any()


def test_ambient_spread_moves_light_from_diffuse_to_ambient():
  """Checks DreamFusionAcc's ambient 0.1 + 0.9 u; the modes equal those without a spread."""
  fixed, spread = lights.LightDistribution(), lights.LightDistribution(ambient_spread=0.9)
  keys = jax.random.split(jax.random.key(3), N)
  draw = lambda d: jax.tree.map(np.asarray, jax.jit(jax.vmap(  # noqa: E731
    lambda key: lights.sample_shading(key, jnp.float32(0.5), d)))(keys))
  before, after = draw(fixed), draw(spread)
  np.testing.assert_array_equal(before.mode, after.mode)
  lit = after.mode != lights.ALBEDO
  np.testing.assert_allclose(after.ambient + after.diffuse, 1.0, atol=1e-6)
  assert (after.ambient[~lit] == 1).all()
  moved = np.sort(after.ambient[lit])
  np.testing.assert_allclose(moved, np.linspace(0.1, 1.0, lit.sum()), atol=0.04)
