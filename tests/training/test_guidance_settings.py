"""Tests negative prompts, Perp-Neg, rescaling and scheduled scalars in the step."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training import conditions, keys
from sds_jax.training.distil import distil
from sds_jax.views import cameras, prompts

SCHEDULED = {"loss.sds", "loss.orientation", "loss.opacity", "loss.entropy", "distillation.guidance_rescale",
             "distillation.perp_neg_scale", "distillation.clip_norm", "distillation.guidance_scale",
             "distillation.t_min", "distillation.t_max"}


@pytest.fixture(scope="module")
def scheduled(ready):
  """Returns (task, step, arguments) with moving schedules, Perp-Neg and a negative prompt."""
  ends = {**dict.fromkeys(SCHEDULED, (2.0, 1.0)), "distillation.t_max": (0.98, 0.5),
          "distillation.t_min": (0.02, 0.1), "distillation.guidance_rescale": (0.7, 0.2)}
  return ready({"distillation.perp_neg": "threestudio", "negative_prompt": "a blue sphere", "shading.lambertian": 0.0,
                **{path: ((0.0, first), (1.0, last)) for path, (first, last) in ends.items()}})


@pytest.mark.thorough
def test_one_compilation_for_the_whole_run(scheduled):
  _, step, (state, *fixed) = scheduled
  compiled = jax.jit(step)
  norms = []
  for _ in range(3):
    state, metrics = compiled(state, *fixed)
    norms.append(float(metrics["sds_grad_norm"]))
  assert compiled._cache_size() == 1 and np.isfinite(norms).all() and min(norms) > 0.0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_the_negative_prompt_is_the_unconditional_side(ready, prior_and_params):
  prior, _ = prior_and_params
  null = {negative: ready({"negative_prompt": negative})[2][2]["null"] for negative in ("", "a blue sphere")}
  expected = prior.embed(["", "a blue sphere"])["text"]
  np.testing.assert_allclose(jnp.stack([null[""]["text"], null["a blue sphere"]["text"]]), expected, atol=1e-5)
  assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_conditions_under_perp_neg(scheduled, prior_and_params):
  """Checks azimuth 36 degrees: 0.6 front and 0.4 side, both also negatives, all with the camera of the view."""
  task, _, (_, _, text, _) = scheduled
  plain = dataclasses.replace(task.settings.distillation, perp_neg="none")
  azimuth, elevation = jnp.radians(jnp.array([36.0, 0.0])), jnp.radians(jnp.array([20.0, 75.0]))
  cams = jax.vmap(lambda a, e: cameras.orbit(a, e, 2.5, 0.8))(azimuth, elevation)
  cond = conditions.of_views(*prior_and_params, plain, text, cams, azimuth, elevation, jnp.float32(0.0))
  sides = dict(cond, **conditions.perp_neg_sides(cond, text, azimuth, elevation, "threestudio", jnp.float32(2.0)))
  views = {name: np.asarray(text["views"]["text"][i]) for i, name in enumerate(prompts.VIEWS)}
  np.testing.assert_allclose(sides["cond"]["text"][0], 0.6 * views["front"] + 0.4 * views["side"], atol=1e-5)
  np.testing.assert_allclose(sides["cond"]["text"][1], views["overhead"], atol=1e-6)
  decay = lambda r: 4 * math.exp(-0.5 * r) - 2.426  # noqa: E731
  np.testing.assert_allclose(sides["weights"], [[-2 * decay(0.6), -2 * decay(0.4)], [0.0, 0.0]], atol=1e-4)
  for side, name in zip(sides["negatives"], ("front", "side")):
    np.testing.assert_array_equal(side["text"], np.stack([views[name]] * 2))
  np.testing.assert_array_equal(sides["uncond"]["text"], np.stack([np.asarray(text["null"]["text"])] * 2))
  for side in (sides["cond"], sides["uncond"], *sides["negatives"]):
    np.testing.assert_array_equal(side["camera"], cond["cond"]["camera"])


def distillation_under(ready, prior, changes):
  """Returns a jitted function (progress, x, cond) -> (gradient with respect to x, aux)."""
  task, _, (_, _, _, key) = ready(changes)

  def loss(x, cond, progress):
    return distil(task.settings.distillation, 1.0, prior, None, x, cond, keys.step_keys(key, jnp.int32(0)), progress,
                  views=2, seed=0)

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  return lambda progress, x, cond: gradient(x, cond, jnp.float32(progress))


def test_the_clip_norm_follows_its_schedule(ready, prior_and_params):
  """Checks a network that predicts zero: the residual is the noise, of norm about sqrt(768) w(t)."""
  prior = dataclasses.replace(prior_and_params[0], denoise=lambda params, z, t, cond: jnp.zeros_like(z))
  gradient = distillation_under(ready, prior, {"distillation.clip_norm": ((0.0, 2.0), (1.0, 1.0))})
  for progress, norm in ((0.0, 2.0), (0.25, 1.75), (1.0, 1.0)):
    grad, aux = gradient(progress, jnp.zeros((2, 4, 4, 48)), dict(cond=jnp.zeros((2, 1)), uncond=jnp.zeros((2, 1))))
    assert np.asarray(aux.grad_norm).max() > norm
    np.testing.assert_allclose(np.sqrt(np.sum(np.asarray(grad)**2, (1, 2, 3))), np.minimum(aux.grad_norm, norm) / 2,
                               rtol=1e-4)


def test_the_rescaling_follows_its_schedule(ready, prior_and_params):
  prior = dataclasses.replace(prior_and_params[0], denoise=lambda params, z, t, cond: cond)
  gradient = distillation_under(ready, prior, {"distillation.guidance_rescale": ((0.0, 0.8), (1.0, 0.0))})
  eps_c, eps_u = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(2, 2, 4, 4, 48)))
  wide = np.asarray(eps_u) + 3.0 * np.asarray(eps_c - eps_u)  # the default scale
  for progress, phi in ((0.0, 0.8), (0.5, 0.4), (1.0, 0.0)):
    _, aux = gradient(progress, jnp.zeros((2, 4, 4, 48)), dict(cond=eps_c, uncond=eps_u))
    for b in range(2):
      ratio = np.asarray(eps_c[b], np.float64).std() / wide[b].astype(np.float64).std()
      np.testing.assert_allclose(aux.eps_hat[b], phi * ratio * wide[b] + (1 - phi) * wide[b], atol=1e-4)
