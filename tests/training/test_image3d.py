"""Tests the step of image-to-3D: conditions of each view, a turned camera, many devices, two priors."""
import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import guidance
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.photo import null_condition
from sds_jax import settings as settings_lib
from sds_jax.schema import ConfigError
from sds_jax.settings.recipes import image3d as recipes
from sds_jax.tasks import Image3DTask
from sds_jax.training import conditions, layout as layout_lib, loop, second_network
from sds_jax.views import cameras


@pytest.fixture(scope="session")
def viewer(tiny_view_prior):
  return prior_lib.build(tiny_view_prior)


@pytest.fixture(scope="session")
def linear_viewer(viewer):
  """(prior, its parameters) with a linear function of z_t, photo and pose for the network, which compiles faster."""
  def denoise(params, z, t, cond):
    shift = cond["text"].mean((1, 2)) + 1e-3 * t.astype(z.dtype)
    return 0.5 * z + 0.1 * cond["x"] + 0.1 * shift[:, None, None, None]

  return dataclasses.replace(viewer[0], denoise=denoise, predict=denoise), viewer[1]


@pytest.fixture(scope="module")
def task_of(tiny_image_settings):
  def make(changes=None):
    config = settings_lib.defaults("image3d")
    config.update_from_flattened_dict({**tiny_image_settings, **(changes or {})})
    return Image3DTask(settings_lib.validate(config))
  return make


def photo_data(prior, azimuth=0.0, elevation=0.3, seed=0):
  rng = np.random.default_rng(seed)
  alpha = rng.uniform(size=(32, 32, 1))
  photo = np.concatenate([alpha * rng.uniform(size=(32, 32, 3)), alpha], -1).astype(np.float32)
  features = prior.photo.encode(jnp.asarray(photo[..., :3] + 1.0 - photo[..., 3:]))
  return dict(features=features, azimuth=jnp.float32(azimuth), elevation=jnp.float32(elevation),
              photo=jnp.asarray(photo))


def test_each_view_is_conditioned_on_its_pose(viewer, task_of):
  """Checks cond against the pose by hand; uncond and negative are zeros of equal structure."""
  prior, params = viewer
  data = photo_data(prior, azimuth=0.5)
  azimuth, elevation = jnp.array([0.5, 3.0, -2.0]), jnp.array([0.3, 1.0, -0.1])
  distillation = task_of({"distillation.estimator": "csd"}).settings.distillation
  sides = conditions.of_views(prior, params, distillation, data, None, azimuth, elevation, jnp.float32(0.0))
  kernel, bias = (np.asarray(params["cc_projection"]["projection"][name]) for name in ("kernel", "bias"))
  for i, (a, e) in enumerate(zip(azimuth.tolist(), elevation.tolist())):
    pose = [(math.pi / 2 - e) - (math.pi / 2 - 0.3), math.sin(a - 0.5), math.cos(a - 0.5), math.pi / 2 - 0.3]
    tokens = np.asarray(data["features"]["tokens"])
    by_hand = np.stack([np.concatenate([token, pose]) @ kernel + bias for token in tokens])
    np.testing.assert_allclose(sides["cond"]["text"][i], by_hand, atol=1e-5)
    np.testing.assert_array_equal(sides["cond"]["x"][i], data["features"]["x"])
  for null in (sides["uncond"], sides["negative"]):
    assert jax.tree.structure(null) == jax.tree.structure(sides["cond"])
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(null))


def test_guidance_uses_the_photo_and_the_null_condition(linear_viewer):
  """Checks eps_u + s (eps_c - eps_u), with a separate call for each side."""
  prior, params = linear_viewer
  data = photo_data(prior)
  cond = prior.photo.conditions(params, data["features"], jnp.array([[0.2, 0.0, 1.0, 1.2], [0.1, 1.0, 0.0, 1.2]]))
  z, t = jax.random.normal(jax.random.key(0), (2, *prior.x_shape)), jnp.array([3, 70])
  both = guidance.guided(prior.denoise, "diffusers", 3.0)(params, z, t, dict(cond=cond, uncond=null_condition(cond)))
  c, u = (prior.denoise(params, z, t, side) for side in (cond, null_condition(cond)))
  np.testing.assert_allclose(both, u + 3.0 * (c - u), atol=1e-4)
  blank = photo_data(prior, seed=1)
  other = prior.photo.conditions(params, blank["features"], jnp.array([[0.2, 0.0, 1.0, 1.2]] * 2))
  np.testing.assert_array_equal(u, prior.denoise(params, z, t, null_condition(other)))  # nothing of the picture is left


def run(task, viewer, data, second=None, extra=None):
  prior, params = viewer
  params = dict(params, **(extra or {}))
  layout = layout_lib.make_layout(task.settings.parallel, task.settings.training.views)
  program, key = task.program(prior, second, data), jax.random.key(task.settings.seed)
  embedded = program.embed()
  state = layout.put_state(jax.jit(lambda key: program.begin(params, embedded, key, None))(key))
  fixed = (layout.put_prior(params), layout.put_conditions(embedded), layout.put(key))
  step_fn = layout.compile(program.make_step(program.stages[0], layout.share), state, fixed)
  ends = []
  for _ in range(3):
    state, metrics = step_fn(state, *fixed)
    ends.append((layout.fetch(state.params), layout.fetch(metrics)))
  return ends


@pytest.fixture(scope="module")
def plain(linear_viewer, task_of):
  """Parameters and metrics after each step of a run with two views, on one device."""
  return run(task_of({"parallel.devices": 1}), linear_viewer, photo_data(linear_viewer[0]))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_two_devices_match_one(linear_viewer, task_of, plain, mode):
  one, metrics = plain[-1]
  config = task_of({"parallel.devices": 2, "parallel.mode": mode})
  many, spread = run(config, linear_viewer, photo_data(linear_viewer[0]))[-1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
  assert {"rgb", "mask", "sds_grad_norm"} <= set(metrics)
  np.testing.assert_allclose(metrics["rgb"], spread["rgb"], rtol=1e-5)


def test_bfloat16_is_close_to_float32(tiny_view_prior, task_of, viewer):
  """Checks that priors in bfloat16 and float32 move the object almost alike."""
  half = prior_lib.build(tiny_view_prior, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(half[1])} == {jnp.dtype(jnp.bfloat16)}
  params, metrics = run(task_of({"prior.dtype": "bfloat16"}), half, photo_data(half[0]))[-1]
  _, full = run(task_of(), viewer, photo_data(viewer[0]))[-1]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  np.testing.assert_allclose(metrics["sds_grad_norm"], full["sds_grad_norm"], rtol=0.1)


def test_a_stopped_run_resumes_in_the_next_stage(linear_viewer, task_of, train, tmp_path):
  """Checks a run in two parts, split where renders grow: equal bits to an uninterrupted run."""
  prior, params = linear_viewer
  data = photo_data(prior)
  def run_in(workdir, on_render=None, **changes):
    workdir.mkdir(exist_ok=True)
    task = task_of({"training.steps": 4, "render.milestones": ((0.5, 24),), "training.render_every": 2, **changes})
    return train(task, workdir, prior, params, on_render, task.program(prior, None, data)).state

  whole = run_in(tmp_path / "whole")
  with pytest.raises(loop.Interrupted, match="stopped at step 2 of 4"):
    run_in(tmp_path / "parts", lambda state, step: os.kill(os.getpid(), signal.SIGTERM))
  parts = run_in(tmp_path / "parts", resume="must")
  assert int(whole.step) == 4
  jax.tree.map(np.testing.assert_array_equal, *(jax.device_get((s.params, s.opt_state)) for s in (whole, parts)))


def test_a_second_prior_is_conditioned_on_a_prompt(linear_viewer, task_of, plain, linear_prior):
  """Checks Magic123: a prompt adds exactly its own loss, which here has no weight in the first two of three steps."""
  words, params = linear_prior
  task = task_of({"prompt": "a red cube", "loss.words": ((0.25, 0.0), (0.5, 1.0))})
  ends = run(task, linear_viewer, photo_data(linear_viewer[0]), second=words, extra=dict(words=params))
  for (alone, _), (same, _) in zip(plain[:2], ends[:2]):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, same)
  both, metrics = ends[2]
  assert metrics["words_grad_norm"] > 0.0 and metrics["words_grad_norm"] != metrics["sds_grad_norm"]
  apart = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), plain[2][0], both))
  assert max(apart) > 1e-4


def test_the_pose_is_relative_to_the_photo(viewer, task_of):
  """Checks that turning photo and views by one angle leaves the condition unchanged."""
  prior, params = viewer
  azimuth, elevation = jnp.array([0.4, 2.0]), jnp.array([0.1, 0.9])
  distillation = task_of().settings.distillation
  a, b = (conditions.of_views(prior, params, distillation, photo_data(prior, azimuth=turn), None, azimuth + turn,
                              elevation, jnp.float32(0.0)) for turn in (0.0, 1.3))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_the_second_network_gets_the_camera_of_the_prior(viewer, task_of):
  """Checks VSD: the camera is relative to the photo, not to the world."""
  prior, params = viewer
  azimuth, elevation = jnp.array([0.4, 2.0]), jnp.array([0.1, 0.9])
  d = task_of({"distillation.estimator": "vsd"}).settings.distillation
  cond = conditions.of_views(prior, params, d, photo_data(prior, azimuth=1.5), None, azimuth, elevation,
                             jnp.float32(0.0))
  cams = jax.vmap(lambda a, e: cameras.orbit(a, e, 2.7, 0.8))(azimuth, elevation)
  estimating, _ = second_network.score_conditions(d.vsd, cond, cameras.camera_features(cams), jax.random.key(0))
  np.testing.assert_array_equal(estimating["camera"], cond["cond"]["camera"])
  assert np.abs(estimating["camera"] - cameras.camera_features(cams)).max() > 0.1


def test_orientation_loss_without_shading(linear_viewer, task_of, plain):
  """Checks that the loss is off by default, and that a weight makes the render compute normals."""
  off, without = plain[-1]
  on, metrics = run(task_of({"loss.orientation": 100.0}), linear_viewer, photo_data(linear_viewer[0]))[-1]
  assert without["orientation"] == 0.0 and metrics["orientation"] > 0.0
  apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), off["field"], on["field"])
  assert max(jax.tree.leaves(apart)) > 1e-4


@pytest.mark.parametrize("changes, words", [
    ({"distillation.estimator": "dds"}, "compares two descriptions"),
    ({"camera.distance": (2.4, 3.0)}, "give one value twice"),
    ({"loss.depth": 1.0}, "config.picture.depth"),
    ({"picture.normals": "n.png"}, "has no effect.*--config.loss.normals="),
    ({"camera.position_jitter": 0.1}, "config.camera.position_jitter=0.1 must be 0.0"),
    ({"camera.up_std": 0.02}, "config.camera.up_std"),
    ({"prompt": "a red cube"}, "config.loss.words is 0.0"),
    ({"picture.elevation_deg": "high"}, "auto, or a number of degrees"),
    ({"picture.framing": "sideways"}, "must be one of"),
    ({"training.particles": 2, "training.views": 2}, "has no effect"),
    ({"shading.lambertian": 0.5}, "the photo's own light")])
def test_contradictory_settings(task_of, changes, words):
  with pytest.raises(ConfigError, match=words):
    task_of(changes)


@pytest.mark.parametrize("words", ["", "shapeworld-views", "zero123", "stable-zero123", "magic123", "zero123-xl",
                                   "magic123,shapeworld-views", "zero123,someone/weights"])
def test_recipes_are_legal(words):
  config = recipes.from_words(words)
  if words.startswith("magic123"):
    config.prompt = "a hamburger" if words == "magic123" else "a red cube"
  assert settings_lib.validate(config).job == "image3d"


@pytest.mark.parametrize("words", ["nothing", "zero123,zero123-xl,sd15", "zero123-xl,zero123", "magic123,magic123"])
def test_unknown_recipes(words):
  with pytest.raises(ConfigError, match="is not a recipe"):
    recipes.from_words(words)
