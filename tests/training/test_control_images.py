"""Tests a ControlNet in a run: the images that it reads, against closed forms, and every estimator with it."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.generators.protocol import Draws
from sds_jax.tasks import ScenesTask
from sds_jax.training import inspect_guidance, scenes as scenes_lib
from sds_jax.training.control_images import control_images, depth_map, normal_map
from sds_jax.training.keys import step_keys
from sds_jax.training.parallel import Share
from sds_jax.types import RenderOutput
from sds_jax.views import cameras

CONTROL = dict(in_channels=4, block_out_channels=[8], layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
               down_block_types=["CrossAttnDownBlock2D"], cross_attention_dim=8,
               conditioning_embedding_out_channels=[4, 4])
SETTINGS = {"prior.path": "", "prior.name": "sd15", "prior.random_weights": True, "prior.controlnet": "depth",
            "render.height": 8, "render.width": 8, "training.views": 2, "distillation.ism.steps": 2,
            "distillation.sdi.steps": 2, "distillation.vsd.rank": 2}
SIZE = 8


@pytest.fixture(scope="module")
def views():
  return jax.vmap(lambda azimuth: cameras.orbit(azimuth, 0.3, 2.5, 0.8))(jnp.array([0.4, 2.0]))


def rendered(views, depth=1.0, opacity=1.0, normals=(0.0, 0.0, 1.0)):
  """A render of two views of equal values."""
  fill = lambda value, *shape: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (2, SIZE, SIZE, *shape))  # noqa: E731
  return RenderOutput(rgb=fill(0.0, 3), opacity=fill(opacity), depth=fill(depth), normals=fill(normals, 3),
                      orientation=fill(0.0))


def test_depth_is_inverse_and_stretched(views):
  """A plane that crosses the frame at an angle, nearest at the left, over a background on the right."""
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, SIZE, SIZE).directions)(views)
  cosine = -np.einsum("bhwi,bi->bhw", rays, views.rotation[..., 2])
  plane = np.broadcast_to(np.linspace(1.0, 2.0, SIZE)[None, None], cosine.shape)  # to the camera's plane
  opaque = np.broadcast_to(np.arange(SIZE)[None, None] < SIZE - 2, cosine.shape)
  out = rendered(views).replace(depth=jnp.asarray(opaque * plane / cosine, jnp.float32),
                                opacity=jnp.asarray(opaque, jnp.float32))
  expected = np.where(opaque, 1 / plane, 0.0)  # the largest is 1, the smallest 0
  got = depth_map(out, views)
  np.testing.assert_allclose(got, np.repeat(expected[..., None], 3, -1), atol=1e-5)
  covered = depth_map(rendered(views).replace(depth=jnp.asarray(plane / cosine, jnp.float32)), views)
  np.testing.assert_allclose(covered[..., 0], 2 / plane - 1, atol=1e-5)  # (1/z - 1/2) / (1 - 1/2)


@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_a_view_without_contrast_is_black(views, opacity):
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, SIZE, SIZE).directions)(views)
  depth = -2.0 / jnp.einsum("bhwi,bi->bhw", rays, views.rotation[..., 2])
  got = depth_map(rendered(views, opacity=opacity).replace(depth=depth * opacity), views)
  np.testing.assert_allclose(got, 0.0, atol=1e-3)


@pytest.mark.parametrize("axis, sign, colour", [
  (0, 1, (0.0, 0.5, 0.5)), (0, -1, (1.0, 0.5, 0.5)), (1, 1, (0.5, 1.0, 0.5)), (2, 1, (0.5, 0.5, 1.0))])
def test_normals_are_red_left_green_up_and_blue_towards_the_camera(views, axis, sign, colour):
  # Half opaque: the weighted normals are shorter than 1, and the background shines through.
  for opacity in (1.0, 0.5):
    normals = sign * opacity * views.rotation[:, None, None, :, axis]
    out = rendered(views, opacity=opacity).replace(normals=jnp.broadcast_to(normals, (2, SIZE, SIZE, 3)))
    expected = opacity * np.asarray(colour) + (1 - opacity) * np.asarray((0.5, 0.5, 1.0))
    np.testing.assert_allclose(normal_map(out, views), np.broadcast_to(expected, (2, SIZE, SIZE, 3)), atol=1e-5)


@pytest.mark.parametrize("kind", ["depth", "normal"])
def test_images_have_the_priors_size_and_no_gradient(views, kind):
  out = rendered(views).replace(opacity=jnp.linspace(0, 1, 2 * SIZE * SIZE).reshape(2, SIZE, SIZE))

  def total(out):
    image = control_images(kind, out, views, 16)
    assert image.shape == (2, 16, 16, 3)
    return jnp.sum(image)

  value, gradient = jax.jit(jax.value_and_grad(total))(out)
  assert float(value) > 1 and all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))


@pytest.fixture
def controlled(make_task, tiny_published, step_of):
  """Returns a function (changes) -> (task, prior, shapes of the step's arguments)."""
  tiny_published["sd15"]["controlnet"] = CONTROL

  def make(changes=None):
    task = make_task({**SETTINGS, **(changes or {})})
    prior, weights = task.opened
    assert set(weights.shapes) == {"unet", "vae", "controlnet"}
    key = jax.random.key(0)
    conditions = jax.eval_shape(lambda: task.embed(prior))
    state = jax.eval_shape(task.program(prior).begin, weights.shapes, conditions, key, None)
    return task, prior, (state, weights.shapes, conditions, key)

  yield make
  del tiny_published["sd15"]["controlnet"]


# One estimator for each set of needs, which decide the sides of the condition.
_KINDS = dict.fromkeys({record.needs: name for name, record in reversed(ESTIMATORS.items())}.values())


@pytest.mark.parametrize("estimator", [
  pytest.param(name, marks=() if name in ("sds", "vsd") else pytest.mark.thorough) for name in _KINDS])
def test_estimators_of_every_kind_take_the_images(controlled, step_of, estimator):
  perp_neg = {"distillation.perp_neg": "threestudio"} if estimator == "sds" else {}
  task, prior, args = controlled({"distillation.estimator": estimator, **perp_neg})
  moved, metrics = jax.eval_shape(step_of(task, prior), *args)
  assert jax.tree.structure(moved) == jax.tree.structure(args[0]) and "sds_grad_norm" in metrics


def test_all_sides_get_the_image_and_the_source_gets_its_own(controlled):
  task, prior, (state, params, conditions, key) = controlled(
    {"prior.controlnet": "normal", "distillation.estimator": "dds"})
  assert task.generator.always_normals and not task.generator.as_latent
  term = task.distillation_term(prior, task.stages[0])
  draws = Draws(step_keys(key, jnp.int32(0), jnp.int32(0)), jnp.arange(2), jnp.float32(0))

  @jax.jit
  def images(key):
    params, grid = task.generator.init(key)
    views = term.generator.render(params, grid, draws)
    cond = term.condition(None, task.embed(prior), views, draws)
    return views.render.normals, term.control_images(views), cond

  normals, expected, cond = images(key)
  assert float(jnp.abs(normals).max()) > 0  # though nothing is shaded
  assert {"cond", "uncond"} <= set(cond)
  for side in cond.values():
    np.testing.assert_array_equal(side["control"], expected)


def test_the_sheet_shows_the_image(controlled, tmp_path):
  task, prior, args = controlled()
  inspect = inspect_guidance.make_inspection(task.distillation_term(prior, task.stages[0]), 4)
  sheet = jax.eval_shape(inspect, *args)
  assert sheet["control"].shape == sheet["render"].shape == (2, 96, 96, 3)
  filled = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in sheet.items()}
  assert inspect_guidance.write_sheet(task.settings.distillation, filled, tmp_path / "sheet.png").is_file()


def test_scenes_take_the_images(tiny_config, controlled):
  task, prior, args = controlled()
  scenes = ScenesTask(settings_lib.validate(tiny_config({**SETTINGS, "prompts_file": "prompts.txt"})))
  scenes.scenes = scenes_lib.make_scenes(("a red cube", "a blue cube"), 0)
  program = scenes.program(prior)
  conditions = jax.eval_shape(program.embed)
  state = jax.eval_shape(program.begin, args[1], conditions, args[3], None)
  moved, _ = jax.eval_shape(program.make_step(program.stages[0], Share()), state, args[1], conditions, args[3])
  assert jax.tree.structure(moved) == jax.tree.structure(state)


@pytest.mark.thorough
def test_a_run_goes_on_and_spreads_over_devices(controlled, make_task, train, tmp_path):
  finals = []
  for name, changes in (("one", {}), ("two", {"parallel.devices": 2})):
    task, prior, _ = controlled({**changes, "training.guidance_every": 2})
    params = task.opened[1].load()
    finals.append(jax.device_get(train(task, tmp_path / name, prior, params).state))
  for a, b in zip(*map(jax.tree.leaves, (finals[0].params, finals[1].params))):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert (tmp_path / "one" / "progress" / "guidance_000002.png").is_file()
  longer = make_task({**SETTINGS, "training.steps": 6})
  assert int(train(longer, tmp_path / "one", prior, params).state.step) == 6
  other, _, _ = controlled({"prior.controlnet_scale": 0.0})
  assert dataclasses.replace(other.settings.prior, controlnet_scale=1.0) == longer.settings.prior
