"""Fixtures of the tests of training: tasks and runs of a few steps under the tiny prior."""
import dataclasses

import jax
import pytest


@pytest.fixture(scope="session")
def prior_and_params(tiny_prior):
  from sds_jax.priors import prior
  return prior.build(tiny_prior)


@pytest.fixture(scope="session")
def linear_prior(prior_and_params):
  """(prior, its parameters): the tiny prior with a linear function for its network.

  A step with the U-Net takes twice as long to compile. For tests of what a run does, whatever the network is.
  """
  prior, params = prior_and_params

  def denoise(params, z, t, cond):
    shift = cond["text"].mean((1, 2)) + cond["camera"].mean(1) + 1e-3 * t.astype(z.dtype)
    return (0.5 + params["unet"]["conv_in"]["bias"].mean()) * z + 0.1 * shift[:, None, None, None]

  return dataclasses.replace(prior, denoise=denoise, predict=denoise), params


@pytest.fixture
def compiled_once(monkeypatch):
  """Lets the runs of a test share their executables where devices and shapes are equal.

  For runs of equal settings, whose steps are equal, too: a step takes longer to trace and compile than to run.
  """
  from sds_jax.training import loop
  made, compile_stages = {}, loop._compile

  def shared(program, layout, state, fixed):
    kind = str((layout, jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, fixed))))
    made[kind] = made.get(kind) or compile_stages(program, layout, state, fixed)
    return made[kind]

  monkeypatch.setattr(loop, "_compile", shared)


@pytest.fixture(scope="session")
def tiny_image_settings(tiny_settings):
  """Returns the tiny settings for image-to-3D."""
  return {**{name: value for name, value in tiny_settings.items() if name != "prompt"}, "picture.elevation_deg": 20}


@pytest.fixture(scope="session")
def make_task(tiny_config):
  """Returns a function (changes) -> the text-to-3D task of the changed tiny settings."""
  from sds_jax import settings
  from sds_jax.tasks import Text3DTask
  return lambda changes=None: Text3DTask(settings.validate(tiny_config(changes)))


@pytest.fixture(scope="session")
def make_image_task(tiny_prior):
  """Returns a function (generator, changes) -> the image task of a run of four steps under the tiny prior."""
  from sds_jax import settings
  from sds_jax.settings.recipes import image2d
  from sds_jax.tasks import Image2DTask

  tiny = {"generator.size": 16, "parallel.devices": 1, "training.steps": 4, "training.log_every": 1,
          "training.render_every": 0, "training.checkpoint_every": 100, "training.views": 2,
          "optimizer.warmup_steps": 1, "distillation.ism.steps": 2, "distillation.sdi.steps": 2,
          "distillation.vsd.rank": 2}

  def task(name="pixels", changes=None):
    config = image2d.from_words(name)
    config.update_from_flattened_dict({"prior.path": str(tiny_prior), **tiny, **(changes or {})})
    return Image2DTask(settings.validate(config))
  return task


@pytest.fixture(scope="session")
def train():
  """Returns a function (task, folder, prior, params, on_render, program) -> `RunResult`; program None: the task's."""
  from sds_jax.training import layout as layout_lib, loop

  def run(task, folder, prior, params, on_render=None, program=None):
    program = program or task.program(prior)
    layout = layout_lib.make_layout(task.settings.parallel, task.settings.training.views, program.together)
    return loop.train(task.settings, folder, prior, layout.put_prior(params), program, layout, on_render)

  return run


@pytest.fixture(scope="session")
def step_of():
  """Returns a function (task, prior) -> the step of the task's first stage, on one device."""
  from sds_jax.training.parallel import Share

  def make(task, prior):
    program = task.program(prior)
    return program.make_step(program.stages[0], Share())

  return make


@pytest.fixture(scope="session")
def ready(make_task, prior_and_params, step_of):
  """Returns a function (changes) -> (task, step, arguments (state, prior_params, conditions, key) of the step)."""
  prior, prior_params = prior_and_params

  def make(changes=None, seed=0):
    task, key = make_task(changes), jax.random.key(seed)
    state = jax.jit(task.new_state)(jax.random.fold_in(key, 2**31 - 1))
    return task, step_of(task, prior), (state, dict(unet=prior_params["unet"]), task.embed(prior), key)

  return make
