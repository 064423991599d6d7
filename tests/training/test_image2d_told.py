"""What the prior is told of each picture of a step: the text of its frame, and where it is seen from."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training import image2d, image2d_config, update
from sds_jax.training.validation import validate
from sds_jax.views import cameras

KEYS = update.step_keys(jax.random.key(0), jnp.int32(0))


@pytest.fixture(scope="module")
def observed(tiny_prior, prior_and_params):
  """(generator, changes, changes of the prior) -> (studio, images, cond, own) of the first step, or their shapes."""
  def of(name="pixels", changes=None, shapes=False, **prior_changes):
    config = image2d_config.default(name)
    config.update_from_flattened_dict({"prior.path": str(tiny_prior), "generator.size": 16, **(changes or {})})
    studio = image2d.make_studio(validate(config))
    prior = dataclasses.replace(prior_and_params[0], **prior_changes)
    text = image2d.embed_prompts(prior, studio.config, studio.generator.frames)
    state = image2d.new_state(studio, jax.random.key(0))
    look = lambda *args: image2d.observe(studio, prior, *args, KEYS)  # noqa: E731
    images, _, cond, own = (functools.partial(jax.eval_shape, look) if shapes else jax.jit(look))(
        state.params, state, prior_and_params[1], text)
    return studio, images, cond, own
  return of


def told(cond):
  """The camera on each side of cond: the same on all, or None on all."""
  found = [side.get("camera") for side in cond.values()]
  assert all(other is None for other in found) or all(np.array_equal(found[0], other) for other in found)
  return found[0]


def test_each_frame_has_its_prompt_in_every_repeat(observed, prior_and_params):
  _, images, cond, _ = observed("shared", {"generator.shared.frames": 2, "training.views": 4,
                                           "prompt": "a red cube|a blue sphere"})
  cube, sphere = np.asarray(prior_and_params[0].embed(["a red cube", "a blue sphere"]))
  np.testing.assert_allclose(cond["cond"]["text"], np.stack([cube, sphere, cube, sphere]), atol=1e-5)
  assert np.abs(cube - sphere).max() > 1e-3
  np.testing.assert_array_equal(images[:2], images[2:])
  assert not np.array_equal(images[0], images[1])


def test_the_viewpoint_is_told_in_degrees_to_a_prior_that_knows_cameras(observed):
  """Of every picture, on every side: azimuth 40, elevation -10, from 2.7 away."""
  _, _, cond, own = observed("pixels", {"generator.viewpoint": (40.0, -10.0), "training.views": 4,
                                        "generator.particles": 2})
  azimuth, elevation = np.radians(40.0), np.radians(-10.0)
  camera = told(cond)
  direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
  np.testing.assert_allclose(camera[:, :3], np.tile(direction, (4, 1)), atol=1e-6)
  np.testing.assert_allclose(camera[:, 13], 0.0, atol=1e-6)  # beyond the mean distance
  np.testing.assert_array_equal(own["camera"], camera)


def test_no_viewpoint_and_no_prior_that_knows_cameras_tell_nothing(observed):
  for changes in (dict(changes={"generator.viewpoint": ()}), dict(camera_dim=0)):
    _, _, cond, own = observed("pixels", shapes=True, **changes)
    assert told(cond) is None and "camera" not in own


def test_a_textures_own_cameras_go_before_the_viewpoint(observed):
  """One for each repeat and particle; a prior that knows none is not told, but the second network may be (`own`)."""
  changes = {"generator.viewpoint": (40.0, -10.0), "generator.texture.resolution": 4, "training.views": 4,
             "generator.particles": 2}
  studio, _, cond, own = observed("texture", changes)
  through = [studio.generator.cameras(jax.random.fold_in(KEYS["views"], i)) for i in range(4)]
  expected = np.concatenate([cameras.camera_features(camera) for camera in through])
  np.testing.assert_allclose(told(cond), expected, atol=1e-6)
  np.testing.assert_array_equal(own["camera"], told(cond))
  _, _, cond, own = observed("texture", changes, shapes=True, camera_dim=0)
  assert told(cond) is None and own["camera"].shape == expected.shape
