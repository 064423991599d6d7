"""Runs with a prior that looks at four views of an object together."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.drills import tiny
from sds_jax.generators import particles
from sds_jax.priors import prior as prior_lib
from sds_jax.schema import ConfigError
from sds_jax.tasks import ScenesTask, Text3DTask
from sds_jax.training import inspect_guidance, layout as layout_lib, scenes as scenes_lib
from sds_jax.training.parallel import Share

FOUR = {"training.views": 4, "training.steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.write_prior(tmp_path_factory.mktemp("multiview"), views=4)


@pytest.fixture(scope="module")
def opened(folder):
  return prior_lib.build(folder)


@pytest.fixture(scope="module")
def linear(opened):
  """(prior, its parameters) with a linear function of a group's views for the network, which compiles faster."""
  def denoise(params, z, t, cond):
    shift = cond["text"].mean((1, 2)) + cond["camera"].mean(1) + 1e-3 * t.astype(z.dtype)
    groups = z.reshape(-1, 4, *z.shape[1:])
    mixed = 0.3 * groups + 0.5 * groups.mean(1, keepdims=True)
    return mixed.reshape(z.shape) + 0.1 * shift[:, None, None, None]

  return dataclasses.replace(opened[0], denoise=denoise, predict=denoise), opened[1]


@pytest.fixture(scope="module")
def task_of(folder, tiny_config):
  """Returns (changes) -> the task under the multi-view prior."""
  return lambda changes=None: Text3DTask(settings_lib.validate(tiny_config(
    {"prior.path": str(folder), **FOUR, **(changes or {})})))


def run(task, opened, steps):
  """Returns the parameters and metrics after some steps on the devices of the settings."""
  prior, params = opened
  layout, program = task.make_layout(), task.program(prior)
  text = program.embed()
  state = layout.put(jax.jit(lambda key: program.begin(params, text, key, None))(jax.random.key(5)))
  fixed = (layout.put_prior(params), layout.put(text), layout.put(jax.random.key(0)))
  step = layout.compile(program.make_step(program.stages[0], layout.share), state, fixed)
  for _ in range(steps):
    state, metrics = step(state, *fixed)
  return jax.device_get(layout.local((state.params, metrics)))


def worst(a, b):
  return max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(*map(jax.tree.leaves, (a, b))) if np.abs(x).max())


def test_two_devices_equal_one(task_of, linear):
  views = {"training.views": 8, "distillation.guidance_rescale": 0.5, "distillation.rescale_space": "x0"}
  one, many = (run(task_of({**views, "parallel.devices": devices}), linear, 4) for devices in (1, 2))
  assert worst(one[0], many[0]) < 1e-4
  np.testing.assert_allclose(one[1]["sds_grad_norm"], many[1]["sds_grad_norm"], rtol=1e-3)


def test_groups_are_not_split_over_devices(task_of):
  with pytest.raises(ConfigError, match="training.views=8 cannot be spread evenly over the 8 devices times the 4 views "
                                        "that belong together: set it to 32 or a multiple, or use fewer .*devices=2"):
    task_of({"training.views": 8, "parallel.devices": 0}).make_layout()


@pytest.mark.parametrize("changes, words", [
  ({"training.views": 6}, "training.views=6 is no multiple of config.camera.group=4, the number of views around an"),
  ({"training.views": 4, "training.particles": 2},
   "training.views=4 is no multiple of config.camera.group=4 times config.training.particles=2"),
  ({"camera.group": 2}, "looks at 4 views of an object together: set config.camera.group=4, and config.training.vi")])
def test_settings_that_do_not_fit_the_prior(task_of, changes, words):
  with pytest.raises(ConfigError) as caught:
    _ = task_of(changes).opened
  assert words in str(caught.value)


def test_images_have_no_views(folder, make_image_task):
  with pytest.raises(ConfigError, match="looks at 4 views of an object together: images have no views; use configs/te"):
    _ = make_image_task(changes={"prior.path": str(folder)}).opened


OFTEN = ("csd", "pds", "vsd")
"""Estimators with a negative prompt, with a source, and with a second network; the others need nothing else."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.thorough)
                                  for name in ESTIMATORS])
def test_steps_of_every_estimator(task_of, opened, name):
  """Traced and not run: shapes, conditions and groups fit."""
  prior, params = opened
  task = task_of({"distillation.estimator": name, "distillation.ism.steps": 2, "distillation.sdi.steps": 2,
                  "distillation.vsd.rank": 2, "distillation.guidance_rescale": 0.5})
  program = task.program(prior)
  text = program.embed()
  state = jax.eval_shape(lambda: program.begin(params, text, jax.random.key(0), None))
  step = program.make_step(program.stages[0], Share())
  moved, _ = jax.eval_shape(step, state, params, text, jax.random.key(0))
  assert jax.tree.map(lambda leaf: leaf.shape, moved.params) == jax.tree.map(lambda leaf: leaf.shape, state.params)


def test_what_the_prior_is_asked(task_of, opened):
  """One t and one background a group, the cameras of a group 90 degrees apart, and a sheet of its four views."""
  prior, params = opened
  task = task_of({"training.views": 8, "shading.lambertian": 0.0, "camera.position_jitter": 0.0})
  program = task.program(prior)
  seen = {}

  def denoise(params, z, t, cond):
    jax.debug.callback(lambda t, camera: seen.update(t=t, camera=camera), t, cond["camera"])
    return prior.denoise(params, z, t, cond)

  term = task.distillation_term(dataclasses.replace(prior, denoise=denoise), program.stages[0])
  look = jax.jit(inspect_guidance.make_inspection(term, 4))
  text = program.embed()
  state = jax.jit(lambda key: program.begin(params, text, key, None))(jax.random.key(0))
  sheet = look(state, params, text, jax.random.key(0))
  jax.effects_barrier()
  t = np.asarray(seen["t"]).reshape(2, 2, 4)  # two groups, each under two conditions
  assert (t == t[:, :1, :1]).all() and t[0, 0, 0] != t[1, 0, 0]
  direction = np.asarray(seen["camera"]).reshape(2, 2, 4, 16)[..., :3]
  np.testing.assert_array_equal(direction[:, 0], direction[:, 1])
  azimuth = np.unwrap(np.arctan2(direction[..., 1], direction[..., 0]))
  assert np.abs(np.degrees(np.diff(azimuth)) - 90).max() < 0.1
  assert sheet["t"].shape == (4,) and len(set(np.asarray(sheet["t"]))) == 1
  corner = np.asarray(sheet["render"])[:, 0, 0]
  np.testing.assert_allclose(corner, corner[:1].repeat(4, 0), atol=1e-5)


def test_many_scenes_equal_separate_runs(task_of, linear):
  prior, params = linear
  prompts = ("a red cube", "a blue sphere")
  task = ScenesTask(dataclasses.replace(task_of({"parallel.devices": 2}).settings, prompts_file="prompts.txt"))
  task.scenes = scenes_lib.make_scenes(prompts, 0)
  program, layout = task.program(prior), layout_lib.make_scene_layout(task.settings.parallel, 2)
  text = program.embed()
  state = jax.device_get(jax.jit(lambda key: program.begin(params, text, key, None))(jax.random.key(5)))
  fixed = (layout.put_prior(params), layout.put_conditions(text), layout.put(jax.random.key(0)))
  state = layout.put_state(state)
  step = layout.compile(program.make_step(program.stages[0], layout.share), state, fixed)
  for _ in range(2):
    state, _ = step(state, *fixed)
  alone, _ = run(task_of({"prompt": prompts[1]}), linear, 2)
  assert worst(alone, scenes_lib.pick(layout.fetch(state), 1).params) < 1e-5


def test_particles_get_whole_groups():
  views = jnp.arange(16)
  dealt = particles.deal(2, views, 4)
  np.testing.assert_array_equal(dealt, [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]])
  np.testing.assert_array_equal(particles.gather(2, dealt, 4), views)
  np.testing.assert_array_equal(particles.deal(2, jnp.arange(6)), [[0, 2, 4], [1, 3, 5]])
