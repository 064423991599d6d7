"""Tests every estimator in the step: one program, a frozen network, and a state that resumes exactly."""
import dataclasses

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.commands import evaluate as evaluate_command, train as train_command
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.generators import particles
from sds_jax.schema import ConfigError
from sds_jax.settings import validate
from sds_jax.training import conditions, distil, resume
from sds_jax.training.keys import step_keys
from sds_jax.views import prompts

SMALL = {"distillation.ism.steps": 2, "distillation.sdi.steps": 2, "distillation.vsd.rank": 2}
UNKNOWN = {"prior.allow_unknown_words": True}


@pytest.fixture(scope="module")
def begun(make_task, make_image_task, prior_and_params, step_of):
  """Returns a function (changes, image) -> (task, step, arguments); the state holds the part of the estimator.

  For images it has shapes alone.
  """
  prior, prior_params = prior_and_params

  def make(changes, image=False):
    task = make_image_task("pixels", changes) if image else make_task({**SMALL, **changes})
    text, program = task.embed(prior), task.program(prior)
    state = jax.jit(lambda key: program.begin(prior_params, text, key, None))
    state = jax.eval_shape(state, jax.random.key(3)) if image else state(jax.random.key(3))
    return task, step_of(task, prior), (state, prior_params, text, jax.random.key(0))

  return make


def count_dots(jaxpr):
  """Counts matrix products and convolutions in a jaxpr and all inner jaxprs; the body of a scan counts once."""
  total = sum(eqn.primitive.name in ("dot_general", "conv_general_dilated") for eqn in jaxpr.eqns)
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      for item in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(item, "jaxpr", item)
        total += count_dots(inner) if hasattr(inner, "eqns") else 0
  return total


@pytest.fixture(scope="module")
def traced_once(prior_and_params):
  """(prior, number of its network's products): calls of the network share their traces."""
  prior, params = prior_and_params
  prior = dataclasses.replace(prior, denoise=jax.jit(prior.denoise), predict=None)
  side = dict(text=jnp.zeros((2, 4, 8)), camera=jnp.zeros((2, 16)))
  return prior, count_dots(jax.make_jaxpr(prior.denoise)(params, jnp.zeros((2, *prior.x_shape)),
                                                         jnp.zeros(2, jnp.int32), side).jaxpr)


COPIES = {"ldiff": 1, "vsd": 3, "asd": 2, "ism": 2, "sdi": 2, "cds": 2}
"""Copies of the network's forward pass in the program, where not 1: ISM's and SDI's inversions are one each in a scan;
of VSD one is the prior, one the second network's estimate for the image, one the second network's own learning."""
BACKWARD = ("ldiff", "vsd")
"""Estimators that differentiate a network: the prior itself, or the adapters of its copy."""


@pytest.mark.parametrize("name, image", [
  *((name, True) for name in ESTIMATORS), *(pytest.param(name, False, marks=pytest.mark.thorough)
                                            for name in ("sds", "vsd"))])
def test_one_program_that_differentiates_no_frozen_network(begun, traced_once, step_of, name, image):
  """Checks every estimator with a cheap generator; tests/training/test_step.py checks SDS with a field."""
  task, _, args = begun({"distillation.estimator": name}, image)
  prior, network = traced_once
  idle = dataclasses.replace(prior, denoise=lambda params, z, t, cond: jnp.zeros_like(z))
  whole = count_dots(jax.make_jaxpr(step_of(task, prior))(*args).jaxpr)
  without = count_dots(jax.make_jaxpr(step_of(task, idle))(*args).jaxpr)
  copies = (whole - without) / network
  if name in BACKWARD:
    assert copies > COPIES[name]
  else:
    assert copies == COPIES.get(name, 1)


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=() if name in ("sds", "vsd") else pytest.mark.thorough) for name in ESTIMATORS])
def test_steps_move_the_field_and_stay_finite(begun, prior_and_params, linear_prior, step_of, name):
  """Checks three steps in a field; the tests of images run every estimator."""
  task, step, (state, *fixed) = begun({"distillation.estimator": name})
  step = step_of(task, linear_prior[0]) if name == "sds" else step  # which compiles faster
  compiled, before, prior_before = jax.jit(step), state, jax.tree.map(np.asarray, prior_and_params[1])
  for _ in range(3):
    state, metrics = compiled(state, *fixed)
  assert compiled._cache_size() == 1 and int(state.step) == 3
  assert all(np.isfinite(value) for value in metrics.values()) and metrics["sds_grad_norm"] > 0
  moved = [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (state.params, before.params)))]
  assert max(moved) > 1e-4 and all(np.isfinite(moved))
  if name == "vsd":  # the second network learns, slowly; the prior stays
    first = before.estimator["score"]["adapters"]
    moved = [float(jnp.abs(pair["up"] - first[path]["up"]).max())
             for path, pair in state.estimator["score"]["adapters"].items()]
    assert min(moved) > 0 and max(moved) < 4.5e-4  # three steps of AdamW at 1e-4
    for a, b in zip(*map(jax.tree.leaves, (prior_and_params[1], prior_before))):
      np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
def test_an_edit_without_a_source_prompt_begins_as_the_bridge(begun):
  """Checks DDS where source and object are equal, so that the first step is eps_guided - eps_u."""
  ends = {}
  for name in ("bridge", "dds"):
    open_settings = {"distillation.weighting": "sigma2", "distillation.guidance_scale": 3.0,
                     "distillation.guidance_convention": "diffusers", "distillation.t_min": 0.3,
                     "distillation.t_max": 0.9, "distillation.bridge.begins": 0.0}
    _, step, (state, *fixed) = begun({"distillation.estimator": name, **open_settings})
    end, _ = jax.jit(step)(state, *fixed)
    ends[name] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(end.opt_state) if np.ndim(leaf)])
  np.testing.assert_allclose(ends["dds"], ends["bridge"], rtol=1e-3, atol=1e-7)
  assert np.abs(ends["bridge"]).max() > 1e-3


def test_texts_of_the_bridge_and_of_negative_prompts(tiny_config, prior_and_params):
  prior, _ = prior_and_params
  free = dataclasses.replace(prior, vocabulary=None)

  def of(name, changes=None):
    settings = validate(tiny_config({"distillation.estimator": name, **(changes or {})}))
    return settings.distillation, settings.negative_prompt

  def texts(prior, name, changes=None):
    return conditions.texts(prior, *of(name, changes), "a red cube", prompts.view_prompts)

  bridge = texts(free, "bridge")
  assert bridge["target"][0] == "a red cube, detailed high resolution, high quality, sharp, front view"
  assert bridge["source"][1].startswith("a red cube, oversaturated, smooth") and bridge["null"] == [""]
  assert texts(free, "csd")["negative"] == ["oversaturated color, ugly, tiling, low quality, noisy"]
  # A prior that knows a few words: nothing stands in for quality, the prompt for itself.
  small = texts(prior, "bridge")
  assert small["target"] == small["views"] and small["source"] == [""] * 4
  assert texts(prior, "nfsd", {"negative_prompt": "a blue sphere"})["negative"] == ["a blue sphere"]
  assert conditions.substitutions(prior, *of("bridge")).endswith(
      "quality: nothing replaces target_words and config.negative_prompt='' replaces source_words")
  assert conditions.substitutions(prior, *of("sds")) == conditions.substitutions(free, *of("csd")) == ""
  users = {"negative_prompt": "", "distillation.nfsd.negative_prompt": "a sphere"}
  assert conditions.user_texts(*of("nfsd", {"distillation.nfsd.negative_prompt": "a sphere"})) == users
  assert conditions.user_texts(*of("csd")) == {"negative_prompt": ""}  # published words are nobody's mistake
  assert conditions.user_texts(*of("pds")) == {"negative_prompt": "", "distillation.source_prompt": ""}
  assert texts(prior, "dds", {"distillation.source_prompt": "a green cone"})["source"][0] == "a green cone, front view"


@pytest.mark.thorough
def test_the_bridge_begins_with_sds(begun):
  """Checks that a step before `begins` equals SDS; under equal texts the second stage is eps_guided - eps_u."""
  def first(name, begins):
    changes = {"distillation.estimator": name, "distillation.bridge.begins": begins,
               "distillation.guidance_scale": 3.0, "distillation.t_max": 0.98}
    _, step, args = begun(changes)
    return jax.jit(step)(*args)[1]["sds_grad_norm"]

  assert first("bridge", 0.5) == pytest.approx(float(first("sds", 0.5)), rel=1e-4)
  assert first("bridge", 0.0) != pytest.approx(float(first("sds", 0.5)), rel=1e-2)


def same_bits(a, b):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(a)] == [np.asarray(x).tobytes() for x in jax.tree.leaves(b)]


def test_an_edit_begins_with_the_object_of_another_run(make_task, tiny_config, linear_prior, train, tmp_path, capsys):
  source, folder = tmp_path / "source", tmp_path / "edit"
  source_state = jax.device_get(train(make_task(), source, *linear_prior).state)
  edit = {"distillation.estimator": "pds", "distillation.source": str(source), "prompt": "a blue cube",
          "training.steps": 2}
  task = make_task(edit)
  assert task.settings.distillation.source_prompt == "a red cube"
  state = jax.device_get(train(task, folder, *linear_prior).state)
  assert "beginning from step 4" in capsys.readouterr().out
  assert same_bits(state.estimator["params"], source_state.params) and not same_bits(state.params, source_state.params)
  with pytest.raises(resume.ResumeError, match="cannot be edited with these settings"):
    train(make_task({**edit, "field.mlp.hidden": 12}), tmp_path / "other", *linear_prior)
  with pytest.raises(ConfigError, match="no config.json"):
    validate(tiny_config({**edit, "distillation.source": str(tmp_path / "nothing")}))


def test_hifa_acts_on_the_image_of_a_latent(tiny_latent, tiny_config):
  """Checks the second term, alpha / sigma (image - decoded x0_hat) at the image, beside SDS at the latent."""
  prior, params = tiny_latent
  prior = dataclasses.replace(  # for networks small functions, which compile faster
    prior, denoise=lambda params, z, t, cond: jnp.tanh(
      z + cond["text"].mean() + 1e-3 * t[:, None, None, None].astype(z.dtype)),
    decode=lambda params, x: jnp.tanh(jnp.repeat(jnp.repeat(x[..., :3] + x[..., 3:], 2, 1), 2, 2)))
  config = validate(tiny_config({"prior.path": "", "prior.name": "sd15", "prior.random_weights": True,
                                 "render.height": 8, "render.width": 8, "distillation.estimator": "hifa",
                                 "distillation.hifa.image_weight": 0.5}))
  x, image = jnp.full((2, *prior.x_shape), 0.3), jnp.full((2, prior.image_size, prior.image_size, 3), 0.6)
  side = dict(text=jnp.ones((2, 77, 8)))
  cond, keys = dict(cond=side, uncond=side), step_keys(jax.random.key(0), jnp.int32(0))

  @jax.jit
  def gradients(x, image):
    def loss(x, image):
      return distil.distil(config.distillation, config.loss.sds, prior, params, x, cond, keys, jnp.float32(0.5),
                           dict(image=image), views=2, seed=0)
    return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, image)

  (of_x, of_image), aux = gradients(x, image)
  alpha, sigma = (np.asarray(values, np.float64)[np.asarray(aux.t)][:, None, None, None]
                  for values in (prior.schedule.alpha, prior.schedule.sigma))
  np.testing.assert_allclose(of_x, sigma**2 * (np.asarray(aux.eps_hat) - np.asarray(aux.eps)) / 2, rtol=1e-3, atol=1e-5)
  expected = 0.5 * sigma**2 * alpha / sigma * (np.asarray(image) - np.asarray(prior.decode(params, aux.x0_hat))) / 2
  np.testing.assert_allclose(of_image, expected, rtol=1e-3, atol=1e-5)
  assert np.abs(expected).max() > 1e-3


def test_particles_are_independent_objects(begun, linear_prior, step_of, tmp_path):
  """Checks that two objects under SDS each move as a single object with half of the views."""
  task, _, (state, *fixed) = begun({"training.particles": 2, "training.views": 4, "optimizer.warmup_steps": 0})
  step = jax.jit(step_of(task, linear_prior[0]))
  leaf = lambda params: jax.tree.leaves(params["field"])[-1]  # noqa: E731
  assert leaf(state.params).shape[0] == 2 and not np.array_equal(leaf(state.params)[0], leaf(state.params)[1])
  end, _ = step(state, *fixed)
  assert np.abs(leaf(end.params)[0] - leaf(state.params)[0]).max() > 1e-4
  other = dataclasses.replace(state, params=jax.tree.map(lambda a: jnp.stack([a[0], a[0] + 0.1]), state.params))
  moved, _ = step(other, *fixed)
  for a, b in zip(jax.tree.leaves(end.params), jax.tree.leaves(moved.params)):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-6)
  assert not np.allclose(leaf(end.params)[1], leaf(moved.params)[1])
  _, one = list(task.objects_in(end, tmp_path))[1]
  np.testing.assert_array_equal(leaf(one.params), leaf(end.params)[1])
  assert jax.tree.leaves(one.occupancy)[0].shape == jax.tree.leaves(end.occupancy)[0].shape[1:]


def test_views_are_dealt_in_turn(tiny_config):
  dealt = particles.deal(2, jnp.arange(6))
  np.testing.assert_array_equal(dealt, [[0, 2, 4], [1, 3, 5]])
  np.testing.assert_array_equal(particles.gather(2, dealt), np.arange(6))
  with pytest.raises(ConfigError, match="config.training.views=3 is no multiple of config.training.particles=2"):
    validate(tiny_config({"training.particles": 2, "training.views": 3}))


@pytest.mark.thorough
def test_each_particle_writes_its_object(make_task, tmp_path):
  task = make_task({**SMALL, "training.particles": 2, "distillation.estimator": "vsd", "training.render_every": 2})
  train_command.train(task, tmp_path, 0.0)
  assert (tmp_path / "progress" / "000002.png").exists()
  for folder in (tmp_path, tmp_path / "particle_1"):
    assert all((folder / name).exists() for name in ("renders.png", "report.html", "timings.json"))
  assert (tmp_path / "renders.png").read_bytes() != (tmp_path / "particle_1" / "renders.png").read_bytes()
  evaluate_command.evaluate(task, tmp_path, 0.0)
  assert (tmp_path / "particle_1" / "scores.json").exists()
