"""Tests the conditions of a step's images: the prompt of the frame, and the camera."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.generators.protocol import Draws
from sds_jax.settings.recipes import image2d as recipes
from sds_jax.tasks.image2d import Image2DTask
from sds_jax.training.keys import step_keys
from sds_jax.views import cameras

KEYS = step_keys(jax.random.key(0), jnp.int32(0))


@pytest.fixture(scope="module")
def first_step(tiny_prior, prior_and_params):
  """Returns a function (generator, changes, changes of the prior) -> (task, images, cond, camera) of step 0."""
  def of(name="pixels", changes=None, shapes=False, **prior_changes):
    config = recipes.from_words(name)
    config.update_from_flattened_dict({"prior.path": str(tiny_prior), "generator.size": 16, **(changes or {})})
    task = Image2DTask(settings_lib.validate(config))
    prior = dataclasses.replace(prior_and_params[0], **prior_changes)
    stage = task.program(prior).stages[0]
    text, state = task.embed(prior), task.new_state(jax.random.key(0))
    views_count = task.settings.training.views

    def look(params, prior_params, text):
      draws = Draws(KEYS, jnp.arange(views_count), jnp.float32(0.0))
      views = stage.generator.render(params, None, draws)
      camera = None if views.cameras is None else cameras.camera_features(views.cameras)
      term = task.program(prior).terms(stage)[0]
      return views.images, term.condition(prior_params, text, views, draws), camera

    images, cond, camera = (functools.partial(jax.eval_shape, look) if shapes else jax.jit(look))(
        state.params, prior_and_params[1], text)
    return task, images, cond, camera
  return of


def camera_of(cond):
  """Returns the camera of cond, equal on all sides; None without a camera."""
  features = [side.get("camera") for side in cond.values()]
  assert all(other is None for other in features) or all(np.array_equal(features[0], other) for other in features)
  return features[0]


def test_each_frame_has_its_prompt_in_every_repeat(first_step, prior_and_params):
  _, images, cond, _ = first_step("shared", {"generator.shared.frames": 2, "training.views": 4,
                                             "prompt": "a red cube|a blue sphere"})
  cube, sphere = np.asarray(prior_and_params[0].embed(["a red cube", "a blue sphere"])["text"])
  np.testing.assert_allclose(cond["cond"]["text"], np.stack([cube, sphere, cube, sphere]), atol=1e-5)
  assert np.abs(cube - sphere).max() > 1e-3
  np.testing.assert_array_equal(images[:2], images[2:])
  assert not np.array_equal(images[0], images[1])


def test_the_viewpoint_in_degrees_conditions_a_prior_that_knows_cameras(first_step):
  """Checks every image and side: azimuth 40, elevation -10, distance 2.7."""
  _, _, cond, camera = first_step("pixels", {"generator.viewpoint": (40.0, -10.0), "training.views": 4,
                                             "generator.particles": 2})
  azimuth, elevation = np.radians(40.0), np.radians(-10.0)
  features = camera_of(cond)
  direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
  np.testing.assert_allclose(features[:, :3], np.tile(direction, (4, 1)), atol=1e-6)
  np.testing.assert_allclose(features[:, 13], 0.0, atol=1e-6)  # beyond the mean distance
  np.testing.assert_array_equal(camera, features)


def test_no_camera_without_a_viewpoint_or_a_prior_with_cameras(first_step):
  for changes in (dict(changes={"generator.viewpoint": ()}), dict(camera_dim=0)):
    _, _, cond, camera = first_step("pixels", shapes=True, **changes)
    assert camera_of(cond) is None and camera is None


def test_cameras_of_a_texture_take_precedence(first_step):
  """Checks a camera for each repeat and particle; without cameras in the prior only a second network uses them."""
  changes = {"generator.viewpoint": (40.0, -10.0), "generator.texture.resolution": 4, "training.views": 4,
             "generator.particles": 2}
  task, _, cond, camera = first_step("texture", changes)
  through = [task.generator.parameterization.cameras(jax.random.fold_in(KEYS["views"], i)) for i in range(4)]
  expected = np.concatenate([cameras.camera_features(camera) for camera in through])
  np.testing.assert_allclose(camera_of(cond), expected, atol=1e-6)
  np.testing.assert_array_equal(camera, camera_of(cond))
  _, _, cond, camera = first_step("texture", changes, shapes=True, camera_dim=0)
  assert camera_of(cond) is None and camera.shape == expected.shape
