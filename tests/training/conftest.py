"""Fixtures of the tests of training: tasks and runs of a few steps under the tiny prior."""
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="session")
def prior_and_params(tiny_prior):
  from sds_jax.priors import prior
  return prior.build(tiny_prior)


@pytest.fixture(scope="session")
def linear_prior(prior_and_params, linear_network):
  """(prior, its parameters): the tiny prior with a linear function for its network.

  A step with the U-Net takes twice as long to compile. For tests of what a run does, whatever the network is.
  """
  prior, params = prior_and_params
  return dataclasses.replace(prior, denoise=linear_network, predict=linear_network), params


FOR_THE_HOST = {
  "prompt", "seed", "resume", "training.log_every", "training.render_every", "training.checkpoint_every",
  "training.keep_checkpoints", "training.keep_period", "training.guidance_every", "divergence.patience",
  "divergence.restarts"}
"""Settings that no step reads: the host does, or they are in arguments of the step. (CDS alone reads the seed.)"""


def _kind(leaf):
  return leaf.shape, leaf.dtype, getattr(leaf, "sharding", "on the host")


@pytest.fixture(scope="session")
def mixing_prior(linear_prior):
  """(prior, its parameters): the linear prior with a term of every parameter, for shares of them and for adapters."""
  linear, params = linear_prior

  def denoise(params, z, t, cond):
    # Where the prior is sharded, a function of gathered parameters; a sum of sums would need no gathering.
    joined = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    return linear.denoise(params, z, t, cond) + 3.0 * jnp.sin(joined).mean()

  return dataclasses.replace(linear, denoise=denoise, predict=denoise), params


@pytest.fixture(scope="session")
def compiled_once():
  """Returns a function (task, owner, program, anew) -> the context of a program whose step is not compiled again.

  A step takes longer to trace and compile than to run. Steps are equal if all settings that they read are, and if their
  owner is the same object: the prior, for a program of the task. With `anew` the step is compiled in any case.
  """
  from sds_jax.settings.common import flat
  from sds_jax.training import layout as layout_lib
  made = {}

  @contextlib.contextmanager
  def sharing(task, owner, program, anew=False):
    read = {name: value for name, value in flat(task.settings).items() if name not in FOR_THE_HOST}
    stages = []

    def compiled(compile_step, layout, step, state, fixed):
      kind = id(owner), str((stages.pop(), layout, read, jax.tree.map(_kind, (state, fixed))))
      if anew or kind not in made:
        made[kind] = owner, compile_step(layout, step, state, fixed)  # with the owner, so that no other gets its id
      return made[kind][1]

    def make_step(stage, share):
      stages.append(str(stage))
      return program.make_step(stage, share)

    with pytest.MonkeyPatch.context() as patch:
      for kind in (layout_lib.DeviceLayout, layout_lib.SceneLayout):
        patch.setattr(kind, "compile", functools.partialmethod(functools.partial(compiled, kind.compile)))
      yield dataclasses.replace(program, make_step=make_step)

  return sharing


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
def train(compiled_once):
  """Returns a function (task, folder, prior, params, on_render, program, anew) -> `RunResult`.

  It runs `program` or the task's. Runs share the executables of equal steps; with `anew` the step is compiled.
  """
  from sds_jax.training import layout as layout_lib, loop

  def run(task, folder, prior, params, on_render=None, program=None, anew=False):
    owner, program = program.make_step if program else prior, program or task.program(prior)
    layout = layout_lib.make_layout(task.settings.parallel, task.settings.training.views, program.together)
    with compiled_once(task, owner, program, anew) as program:
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


@pytest.fixture(scope="module")  # files have priors of their own
def ready(make_task, prior_and_params, step_of):
  """Returns a function (changes) -> (task, step, arguments (state, prior_params, conditions, key) of the step)."""
  prior, prior_params = prior_and_params

  def make(changes=None, seed=0):
    task, key = make_task(changes), jax.random.key(seed)
    state = jax.jit(task.new_state)(jax.random.fold_in(key, 2**31 - 1))
    return task, step_of(task, prior), (state, dict(unet=prior_params["unet"]), task.embed(prior), key)

  return make
