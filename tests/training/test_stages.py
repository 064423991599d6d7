"""Tests resolution milestones and the latent warm-up: first steps, renders, and resumption in any stage."""
import dataclasses
import os
import signal

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.schema import ConfigError
from sds_jax.training import inspect_guidance, loop, stages as stages_lib
from sds_jax.training.terms.distillation import geometry_as_latent
from sds_jax.types import RenderOutput


def begins(make_task, **changes):
  stages = make_task(changes).stages
  assert all((stage.size, stage.as_latent) == (stage.generator.size, stage.generator.as_latent) for stage in stages)
  return stages, [(stage.first, stage.size, stage.as_latent) for stage in stages]


@pytest.mark.parametrize("milestones, latent_until, expected", [
  ((), 0.0, [(0, 16, False)]),
  (((0.5, 24),), 0.0, [(0, 16, False), (5, 24, False)]),
  (((0.25, 24), (0.31, 32)), 0.0, [(0, 16, False), (3, 24, False), (4, 32, False)]),  # 2.5 and 3.1 of 10 steps are over
  ((), 0.2, [(0, 16, True), (2, 16, False)]),
  (((0.5, 24),), 0.7, [(0, 16, True), (5, 24, True), (7, 24, False)]),
  (((0.5, 24),), 0.5, [(0, 16, True), (5, 24, False)]),
  (((0.99, 24),), 0.95, [(0, 16, True)]),  # 9.9 and 9.5 of 10 steps: there is none left
])
def test_where_stages_begin(make_task, milestones, latent_until, expected):
  stages, begun = begins(make_task, **{
    "training.steps": 10, "render.milestones": milestones, "distillation.latent_until": latent_until})
  assert begun == expected
  for step in range(10):
    current = max(i for i, (first, _, _) in enumerate(expected) if first <= step)
    assert stages_lib.at_step(stages, range(len(stages)), step) == current
    assert stages_lib.are_over(stages, step) == [i < current for i in range(len(stages))]


@pytest.mark.parametrize("fraction, steps, first", [(0.07, 100, 7), (0.55, 100, 55), (0.28, 100, 28), (0.071, 100, 8)])
def test_rounding_of_floats_delays_no_stage(make_task, fraction, steps, first):
  _, begun = begins(make_task, **{"training.steps": steps, "render.milestones": ((fraction, 24),)})
  assert begun == [(0, 16, False), (first, 24, False)]


def test_stages_differ_in_size_only(make_task):
  (first, second), _ = begins(make_task, **{"render.milestones": ((0.5, 24),)})
  before, after = first.generator, second.generator
  for name in ("options", "viewpoints", "lights", "occupancy", "schedule", "particles", "normals", "as_latent"):
    assert getattr(before, name) == getattr(after, name), name
  assert (before.size, after.size) == (16, 24)


@pytest.mark.parametrize("spec", [((0.5, 4),), ((0.5, 2000),), ((0.0, 32),), ((1.0, 32),), ((0.5, 32), (0.5, 48)),
                                  ((0.5, 32.0),), (0.5, 32), ((0.5,),), ((float("nan"), 32),), (("a", 32),)])
def test_impossible_milestones(tiny_config, spec):
  with pytest.raises(ConfigError, match=r"^config\.render\.milestones=.* is not legal: it must be \(\), or"):
    settings_lib.validate(tiny_config({"render.milestones": spec}))


def test_normals_and_opacity_are_a_latent():
  """Compares with a slow version: each normal's (n + 1) / 2 and the mask composited on 0, scaled to [-1, 1]."""
  rng = np.random.default_rng(0)
  weights, normals = rng.dirichlet(np.ones(4), size=(2, 6, 6))[..., :3], rng.normal(size=(2, 6, 6, 3, 3))
  normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
  image = np.zeros((2, 6, 6, 4))
  for place in np.ndindex(2, 6, 6):
    for w, n in zip(weights[place], normals[place]):
      image[place] += w * np.array([*(n + 1) / 2, 1.0])
  zeros = jnp.zeros((2, 6, 6))
  out = RenderOutput(rgb=jnp.zeros((2, 6, 6, 3)), opacity=jnp.asarray(weights.sum(-1), jnp.float32), depth=zeros,
                     normals=jnp.asarray((weights[..., None] * normals).sum(-2), jnp.float32), orientation=zeros)
  np.testing.assert_allclose(geometry_as_latent(out, (6, 6, 4)), 2 * image - 1, atol=1e-6)
  halved = geometry_as_latent(out, (3, 3, 4))
  np.testing.assert_allclose(np.mean(halved, (1, 2)), np.mean(2 * image - 1, (1, 2)), atol=0.1)


def latent_prior(prior):
  """Returns a prior that raises the mask of its latents, and whose autoencoder must not be called."""
  def encode(params, image, key):
    raise AssertionError("the autoencoder has no part in the warm-up")

  pull = jnp.asarray([0.0, 0.0, 0.0, -1.0])
  return dataclasses.replace(prior, x_shape=(4, 4, 4), x_bound=None, encode=encode, camera_dim=0,
                             denoise=lambda params, z, t, cond: jnp.broadcast_to(10.0 * pull, z.shape))


def test_the_warm_up_moves_the_shape_and_leaves_the_colours(ready, prior_and_params, step_of):
  task, _, (state, prior_params, text, key) = ready({"distillation.latent_until": 0.5, "optimizer.warmup_steps": 0,
                                                     "loss.orientation": 0.0})
  step = jax.jit(step_of(task, latent_prior(prior_and_params[0])))
  after, metrics = step(state, prior_params, text, key)
  kernel = lambda state: np.asarray(state.params["field"]["Dense_1"]["kernel"])  # noqa: E731
  moved = np.abs(kernel(after) - kernel(state)).max(0)
  assert float(metrics["sds_grad_norm"]) > 0.0 and float(metrics["shaded"]) == 0.0
  assert moved.shape == (4,) and moved[0] > 0.0 and moved[1:].max() == 0.0  # density, then three of albedo


def test_the_warm_up_needs_latents(make_task):
  with pytest.raises(ConfigError, match="latent_until=0.5 makes latents of four channels, but config.prior.path="):
    make_task({"distillation.latent_until": 0.5}).load_prior()


def test_a_run_with_a_milestone_resumes_in_either_stage(make_task, train, prior_and_params, tmp_path, capsys):
  """Checks equal bits at the end, and a single program for a run that resumes in the second stage."""
  prior, params = prior_and_params
  prior = dataclasses.replace(prior, denoise=lambda params, z, t, cond: jnp.cos(3.0 * z))  # compiles in no time
  changes = {"render.milestones": ((0.5, 24),), "shading.lambertian": 0.0}

  def run(folder, on_render=None, **more):
    state = jax.device_get(train(make_task(changes | more), folder, prior, params, on_render).state)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], capsys.readouterr().out

  whole, log = run(tmp_path / "whole")
  assert log.count("compiling the step at") == 2 and "at 16x16 ... " in log and "at 24x24 ... " in log
  for stop in (1, 3):
    folder = tmp_path / f"stopped_{stop}"
    with pytest.raises(loop.Interrupted, match=f"stopped at step {stop} of 4"):
      run(folder, lambda state, step: os.kill(os.getpid(), signal.SIGTERM), **{"training.render_every": stop})
    capsys.readouterr()
    resumed, log = run(folder)
    assert resumed == whole and log.count("compiling the step at") == (2 if stop == 1 else 1)


def test_a_sheet_of_the_warm_up_is_made_without_encoding(ready, prior_and_params):
  task, _, args = ready({"distillation.latent_until": 0.5})
  prior = dataclasses.replace(latent_prior(prior_and_params[0]), decode=lambda params, x: x[..., :3], image_size=4)
  term = task.distillation_term(prior, task.stages[0])
  sheet = jax.eval_shape(inspect_guidance.make_inspection(term, task.settings.training.steps), *args)
  assert sheet["decoded"].shape == (2, 96, 96, 3)
