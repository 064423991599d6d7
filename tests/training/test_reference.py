"""The losses of the picture's own view, against numpy; where the picture's camera stands; gradients that pull right."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training import image3d_config, reference, step
from sds_jax.training.validation import validate
from sds_jax.types import RenderOutput
from sds_jax.views import cameras

SIZE = 6


@pytest.fixture(scope="module")
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope="module")
def seen(rng):
  """(render [1, S, S], told, background, camera [1]) of random numbers."""
  normals = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
  opacity = rng.uniform(0.2, 1.0, size=(1, SIZE, SIZE)).astype(np.float32)
  out = RenderOutput(rgb=rng.uniform(size=(1, SIZE, SIZE, 3)).astype(np.float32), opacity=opacity,
                     depth=rng.uniform(1.0, 3.0, size=(1, SIZE, SIZE)).astype(np.float32), normals=normals,
                     orientation=np.zeros((1, SIZE, SIZE), np.float32))
  alpha = rng.uniform(size=(SIZE, SIZE, 1)).astype(np.float32)
  told = dict(picture=np.concatenate([alpha * rng.uniform(size=(SIZE, SIZE, 3)), alpha], -1).astype(np.float32),
              depth=rng.uniform(size=(SIZE, SIZE, 2)).astype(np.float32),
              normals=rng.normal(size=(SIZE, SIZE, 4)).astype(np.float32))
  told["normals"][..., 3] = np.abs(told["normals"][..., 3])
  behind = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (1, SIZE, SIZE, 3))
  camera = jax.tree.map(lambda leaf: leaf[None], cameras.orbit(0.4, 0.3, 2.7, 0.8))
  return jax.tree.map(jnp.asarray, (out, told, behind, camera))


def test_colours_are_compared_on_one_background(seen):
  out, told, behind, _ = seen
  picture = np.asarray(told["picture"])
  target = picture[..., :3] + (1 - picture[..., 3:]) * np.asarray(behind[0])
  np.testing.assert_allclose(reference.rgb(*seen), ((np.asarray(out.rgb[0]) - target) ** 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(reference.mask(*seen), ((np.asarray(out.opacity[0]) - picture[..., 3]) ** 2).mean(),
                             rtol=1e-5)


def test_depth_is_a_weighted_correlation(seen):
  out, told, _, _ = seen
  weight = np.asarray(told["picture"][..., 3] * told["depth"][..., 1], np.float64).ravel()
  covariance = np.cov(np.asarray(out.depth[0]).ravel(), np.asarray(told["depth"][..., 0]).ravel(), aweights=weight)
  expected = 1 - covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
  np.testing.assert_allclose(reference.depth(*seen), expected, rtol=1e-4)
  nearer = dict(told, depth=told["depth"].at[..., 0].set(2.0 * out.depth[0] + 1.0))
  assert reference.depth(out, nearer, *seen[2:]) < 1e-4  # neither scale nor shift counts


def test_normals_are_those_of_the_camera(seen):
  out, told, behind, camera = seen
  rotation = np.asarray(camera.rotation[0])
  weight = np.asarray(told["picture"][..., 3] * told["normals"][..., 3])
  total = 0.0
  for y in range(SIZE):
    for x in range(SIZE):
      a, b = rotation.T @ np.asarray(out.normals[0, y, x]), np.asarray(told["normals"][y, x, :3])
      total += weight[y, x] * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
  np.testing.assert_allclose(reference.normals(*seen), total / weight.sum(), rtol=1e-4)
  n = np.asarray(out.normals[0])
  rough = ((n[1:] - n[:-1]) ** 2).mean() + ((n[:, 1:] - n[:, :-1]) ** 2).mean()
  np.testing.assert_allclose(reference.smoothness(*seen), rough, rtol=1e-5)


def test_only_what_counts_is_computed_and_weights_follow_the_run(tiny_image_settings):
  """The sum is that of its parts; a loss of weight 0 is neither there nor asks for its map."""
  config = image3d_config.default()
  config.update_from_flattened_dict({**tiny_image_settings, "loss.rgb": ((0.0, 2.0), (1.0, 4.0)), "loss.mask": (3.0,)})
  scene = step.make_scene(validate(config))
  state = step.new_state(scene, jax.random.key(0))
  alpha = jnp.linspace(0.0, 1.0, 16 * 16).reshape(16, 16, 1)
  told = dict(picture=jnp.concatenate([0.5 * alpha, 0.1 * alpha, alpha, alpha], -1), azimuth=jnp.float32(0.3),
              elevation=jnp.float32(0.2))
  run = jax.jit(lambda params, progress: reference.losses(
      scene, params, state.occupancy, told, jax.random.key(1), progress))
  for progress in (0.0, 0.5):
    total, parts = run(state.params, jnp.float32(progress))
    assert set(parts) == {"rgb", "mask"}
    np.testing.assert_allclose(total, (2 + 2 * progress) * parts["rgb"] + 3 * parts["mask"], rtol=1e-5)
  off = dataclasses.replace(scene, config=validate(_without(config)))
  assert reference.losses(off, state.params, state.occupancy, told, jax.random.key(1), jnp.float32(0.0))[1] == {}


def _without(config):
  config.update_from_flattened_dict({"loss.rgb": (0.0,), "loss.mask": (0.0,)})
  return config
