"""Compares the losses of the photo's view with numpy; tests the photo's camera and the gradients."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.generators.protocol import Draws, Views
from sds_jax.tasks import Image3DTask
from sds_jax.training.keys import step_keys
from sds_jax.training.step import Context
from sds_jax.training.terms import reference
from sds_jax.types import RenderOutput
from sds_jax.views import cameras

SIZE = 6


def known(values):
  """Returns a map [S, S, C] with the confidence in its last channel, by which the others are multiplied."""
  share = np.abs(values[..., -1:])
  return np.concatenate([values[..., :-1] * share, share], -1).astype(np.float32)


@pytest.fixture(scope="module")
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope="module")
def sample(rng):
  """Returns random (render [1, S, S], photo, background, camera [1])."""
  normals = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
  opacity = rng.uniform(0.2, 1.0, size=(1, SIZE, SIZE)).astype(np.float32)
  out = RenderOutput(rgb=rng.uniform(size=(1, SIZE, SIZE, 3)).astype(np.float32), opacity=opacity,
                     depth=rng.uniform(1.0, 3.0, size=(1, SIZE, SIZE)).astype(np.float32), normals=normals,
                     orientation=np.zeros((1, SIZE, SIZE), np.float32))
  alpha = rng.uniform(size=(SIZE, SIZE, 1)).astype(np.float32)
  photo_data = dict(photo=np.concatenate([alpha * rng.uniform(size=(SIZE, SIZE, 3)), alpha], -1).astype(np.float32),
              depth=known(rng.uniform(size=(SIZE, SIZE, 2))), normals=known(rng.normal(size=(SIZE, SIZE, 4))))
  behind = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (1, SIZE, SIZE, 3))
  camera = jax.tree.map(lambda leaf: leaf[None], cameras.orbit(0.4, 0.3, 2.7, 0.8))
  return jax.tree.map(jnp.asarray, (out, photo_data, behind, camera))


def test_colours_are_compared_on_one_background(sample):
  out, photo_data, behind, _ = sample
  photo = np.asarray(photo_data["photo"])
  target = photo[..., :3] + (1 - photo[..., 3:]) * np.asarray(behind[0])
  np.testing.assert_allclose(reference.rgb(*sample), ((np.asarray(out.rgb[0]) - target) ** 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(reference.mask(*sample), ((np.asarray(out.opacity[0]) - photo[..., 3]) ** 2).mean(),
                             rtol=1e-5)


@pytest.mark.parametrize("kind", ["depth", "disparity"])
def test_depth_is_a_weighted_correlation(sample, kind):
  """Checks depths along the camera's axis against a map of depth, and their inverses against disparity."""
  out, photo_data, behind, shot = sample
  photo_data = {name: values for name, values in photo_data.items() if name != "depth"} | {kind: photo_data["depth"]}
  weight = np.asarray(photo_data[kind][..., 1] * out.opacity[0], np.float64).ravel()
  y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
  along = np.asarray(out.depth[0]) / np.sqrt(1 + (x**2 + y**2) / float(shot.focal[0]) ** 2)
  measured = along if kind == "depth" else 1 / along
  values = np.asarray(photo_data[kind][..., 0] / photo_data[kind][..., 1])
  covariance = np.cov(measured.ravel(), values.ravel(), aweights=weight)
  expected = 1 - covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
  np.testing.assert_allclose(reference.depth(out, photo_data, behind, shot), expected, rtol=1e-4)
  exact = {kind: photo_data[kind].at[..., 0].set((2.0 * measured + 1.0) * photo_data[kind][..., 1])}
  assert reference.depth(out, exact, behind, shot) < 1e-4  # neither scale nor shift counts
  wrong = {kind: exact[kind].at[..., 0].multiply(-1.0)}
  assert reference.depth(out, wrong, behind, shot) > 1.9


def test_unknown_pixels_do_not_bleed(sample):
  """Checks a map of twice the size with noise in unknown pixels: each pixel is the mean of known pixels."""
  out, _, behind, shot = sample
  rng = np.random.default_rng(1)
  there = rng.uniform(size=(2 * SIZE, 2 * SIZE, 1)) > 0.4
  fine = np.where(there, rng.normal(size=(2 * SIZE, 2 * SIZE, 3)), 1e3)
  fine = np.concatenate([fine * there, there], -1).astype(np.float32)
  values, share = reference._resize_map(jnp.asarray(fine), SIZE)
  for y in range(SIZE):
    for x in range(SIZE):
      # The triangle of `jax.image.resize` at half the size: 1/8, 3/8, 3/8, 1/8 of four pixels, of those that there are.
      rows = {i: w for i, w in zip(range(2 * y - 1, 2 * y + 3), (1, 3, 3, 1)) if 0 <= i < 2 * SIZE}
      columns = {i: w for i, w in zip(range(2 * x - 1, 2 * x + 3), (1, 3, 3, 1)) if 0 <= i < 2 * SIZE}
      weights = {(i, j): v * w for i, v in rows.items() for j, w in columns.items()}
      all_there = {place: w for place, w in weights.items() if there[place][0]}
      np.testing.assert_allclose(share[y, x], sum(all_there.values()) / sum(weights.values()), rtol=1e-5, atol=1e-7)
      if all_there:
        mean = sum(w * fine[place][:3] for place, w in all_there.items()) / sum(all_there.values())
        np.testing.assert_allclose(values[y, x], mean, rtol=1e-4, atol=1e-5)


def test_normals_are_in_the_frame_of_the_camera(sample):
  out, photo_data, behind, camera = sample
  rotation = np.asarray(camera.rotation[0])
  weight = np.asarray(photo_data["normals"][..., 3])
  total = 0.0
  for y in range(SIZE):
    for x in range(SIZE):
      a, b = rotation.T @ np.asarray(out.normals[0, y, x]), np.asarray(photo_data["normals"][y, x, :3])
      total += weight[y, x] * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
  np.testing.assert_allclose(reference.normals(*sample), total / weight.sum(), rtol=1e-4)
  n = np.asarray(out.normals[0])
  rough = ((n[1:] - n[:-1]) ** 2).mean() + ((n[:, 1:] - n[:, :-1]) ** 2).mean()
  np.testing.assert_allclose(reference.smoothness(*sample), rough, rtol=1e-5)


def test_losses_of_weight_zero_are_skipped_and_weights_follow_schedules(tiny_image_settings):
  """Checks the weighted sum; a loss of weight 0 is not computed and needs no map."""
  config = settings_lib.defaults("image3d")
  config.update_from_flattened_dict({**tiny_image_settings, "loss.rgb": ((0.0, 2.0), (1.0, 4.0)), "loss.mask": 3.0})
  task = Image3DTask(settings_lib.validate(config))
  term = task.photo_terms(None, None, task.stages[0])[-1]
  state = task.new_state(jax.random.key(0))
  alpha = jnp.linspace(0.0, 1.0, 16 * 16).reshape(16, 16, 1)
  photo_data = dict(photo=jnp.concatenate([0.5 * alpha, 0.1 * alpha, alpha, alpha], -1), azimuth=jnp.float32(0.3),
                    elevation=jnp.float32(0.2))
  views = Views(jnp.zeros((1, 16, 16, 3)), {})

  @jax.jit
  def run(params, progress):
    draws = Draws(step_keys(jax.random.key(1), jnp.int32(0)), jnp.arange(2), progress)
    return term(views, Context(params, state, {}, {}, photo_data, draws))

  for progress in (0.0, 0.5):
    total, parts = run(state.params, jnp.float32(progress))
    assert set(parts) == {"rgb", "mask", "reference_overflow"}
    np.testing.assert_allclose(total, (2 + 2 * progress) * parts["rgb"] + 3 * parts["mask"], rtol=1e-5)
  assert dataclasses.replace(term, weights=())(views, None) == (0.0, {})
