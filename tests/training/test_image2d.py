"""Tests images in the loop: one program, exact resumption, particles and frames, a user's generator."""
import dataclasses
import os
import signal

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.schema import ConfigError
from sds_jax.tasks import image2d
from sds_jax.training import loop


@pytest.fixture(scope="session")
def prior_and_params(mixing_prior):
  """A prior of which every parameter counts, also those of adapters."""
  return mixing_prior


@pytest.fixture(scope="module")
def run(train, prior_and_params):
  """Returns a function (task, folder, on_render) -> the last state of the run, as numpy."""
  return lambda task, folder, on_render=None: jax.device_get(train(task, folder, *prior_and_params, on_render).state)


def leaves(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_stopped_run_resumes_exactly(make_image_task, run, tmp_path):
  """Checks bits of two images and of the second network of VSD, also as export and evaluation restore them."""
  changes = {"generator.particles": 2, "distillation.estimator": "vsd"}
  whole = run(make_image_task("fourier", changes), tmp_path / "whole")
  with pytest.raises(loop.Interrupted):
    run(make_image_task("fourier", {**changes, "training.render_every": 2}), tmp_path / "parts",
        lambda state, step: os.kill(os.getpid(), signal.SIGTERM))
  resumed = run(make_image_task("fourier", {**changes, "resume": "must"}), tmp_path / "parts")
  assert leaves(resumed) == leaves(whole) and int(whole.step) == 4
  assert all(np.abs(pair["up"]).max() > 0 for pair in whole.estimator["score"]["adapters"].values())
  restored = make_image_task("fourier", changes).restore(tmp_path / "parts")
  assert leaves((restored.params, restored.estimator)) == leaves((whole.params, whole.estimator))


OFTEN = ("sds", "pds", "ism")
"""Estimators of every kind: one call, a source, an inversion. VSD learns in `test_a_stopped_run_resumes_exactly`."""


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=() if name in OFTEN else pytest.mark.thorough) for name in ESTIMATORS])
def test_every_estimator_moves_an_image(make_image_task, prior_and_params, step_of, name):
  prior, prior_params = prior_and_params
  task = make_image_task("pixels", {"distillation.estimator": name})
  text = task.embed(prior)
  state = task.program(prior).begin(prior_params, text, jax.random.key(0), None)
  before, step = np.asarray(state.params["logits"]), jax.jit(step_of(task, prior))
  for _ in range(2):
    state, metrics = step(state, prior_params, text, jax.random.key(1))
  after = np.asarray(state.params["logits"])
  assert step._cache_size() == 1 and np.isfinite(after).all() and np.abs(after - before).max() > 1e-3
  assert all(np.isfinite(value) for value in metrics.values())


def test_particles_are_independent(make_image_task, prior_and_params, step_of):
  """Checks that the step of an image does not depend on the other image."""
  prior, prior_params = prior_and_params
  task = make_image_task("pixels", {"generator.particles": 2, "optimizer.warmup_steps": 0})
  state = task.new_state(jax.random.key(0))
  step, text = jax.jit(step_of(task, prior)), task.embed(prior)
  logits = state.params["logits"]
  other = dataclasses.replace(state, params=dict(logits=jnp.stack([logits[0], logits[0] + 0.5])))
  end, moved = (np.asarray(step(begun, prior_params, text, jax.random.key(1))[0].params["logits"])
                for begun in (state, other))
  assert logits.shape == (2, 16, 16, 3) and np.abs(end[0] - logits[0]).max() > 1e-3
  np.testing.assert_allclose(moved[0], end[0], rtol=1e-5, atol=1e-6)
  assert not np.allclose(moved[1], end[1], atol=1e-2)


def test_prompts_are_spread_over_the_frames(make_image_task, prior_and_params):
  prior, _ = prior_and_params
  task = make_image_task("shared", {"generator.shared.frames": 3, "training.views": 3,
                                    "prompt": "a red cube|a blue sphere"})
  text = task.embed(prior)
  ends = prior.embed(["a red cube", "a blue sphere"])["text"]
  np.testing.assert_allclose(text["views"]["text"], jnp.stack([ends[0], (ends[0] + ends[1]) / 2, ends[1]]), atol=1e-5)


@pytest.mark.thorough
def test_an_image_of_another_run_is_edited(make_image_task, run, tmp_path):
  source_state = run(make_image_task(), tmp_path / "red")
  task = make_image_task("pixels", {"prompt": "a blue cube", "distillation.estimator": "dds", "training.steps": 2,
                           "optimizer.name": "sgd",  # the source's has no part in it
                           "distillation.source": str(tmp_path / "red")})
  assert task.settings.distillation.source_prompt == "a red cube"
  state = run(task, tmp_path / "blue")
  assert leaves(state.estimator["params"]) == leaves(source_state.params) != leaves(state.params)


def test_any_function_is_a_generator(make_image_task, prior_and_params):
  """Checks affine images theta[0] + theta[1] x, drawn by a plain function."""
  prior, prior_params = prior_and_params
  ramp = jnp.linspace(-1.0, 1.0, 16)[None, :, None]

  def draw(theta, key):
    image = jax.nn.sigmoid(theta["mean"][None, None] + theta["slope"][None, None] * ramp)
    return jnp.broadcast_to(image, (1, 16, 16, 3))

  begin = dict(mean=jnp.zeros(3), slope=jnp.zeros(3))
  settings = settings_lib.defaults("image2d")
  settings.update_from_flattened_dict({
      "prior.path": prior.name, "parallel.devices": 1, "training.steps": 4, "training.views": 2,
      "training.render_every": 0, "optimizer.warmup_steps": 1})
  learnt = image2d.optimise(draw, begin, prior, prior_params, "a red cube", config=settings)
  assert learnt["mean"].shape == (3,) and float(jnp.abs(learnt["mean"]).max()) > 0.01
  for function, change, message in (
      (lambda theta, key: jnp.concatenate([draw(theta, key)] * 2), {"training.views": 3}, "views=3 must be a multiple"),
      (lambda theta, key: draw(theta, key)[0], {}, r"apply returns .* it must return images"),
      (draw, {"distillation.estimator": "nope"}, "estimator='nope' is not legal: it must be one of sds")):
    wrong = settings.copy_and_resolve_references()
    wrong.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
      image2d.optimise(function, begin, prior, prior_params, "a red cube", config=wrong)
