import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.schedules import (add_noise, draw_noise, flow_schedule, per_example,
                                         prediction_type_from_config, schedule_from_config, snr)


def slow_alpha_bar(betas):
  """Computes the cumulative product by a loop over Python floats."""
  out, product = [], 1.0
  for beta in betas:
    product *= 1.0 - beta
    out.append(product)
  return out


def slow_betas(kind, start, end, steps):
  if kind == "linear":
    return [start + (end - start) * i / (steps - 1) for i in range(steps)]
  if kind == "scaled_linear":
    return [(math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * i / (steps - 1)) ** 2 for i in range(steps)]
  bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
  return [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_formula_against_a_loop(kind):
  schedule = schedule_from_config(dict(beta_schedule=kind, beta_start=0.001, beta_end=0.03, num_train_timesteps=200))
  bar = np.array(slow_alpha_bar(slow_betas(kind, 0.001, 0.03, 200)))
  assert schedule.alpha.dtype == schedule.sigma.dtype == jnp.float32
  np.testing.assert_allclose(schedule.alpha, np.sqrt(bar), rtol=1e-6)
  np.testing.assert_allclose(schedule.sigma, np.sqrt(1 - bar), rtol=1e-6)


def test_defaults_are_those_of_diffusers():
  schedule = schedule_from_config({})
  np.testing.assert_allclose(schedule.alpha, np.sqrt(slow_alpha_bar(slow_betas("linear", 1e-4, 0.02, 1000))), rtol=1e-6)


@pytest.mark.parametrize("name, like", [
  ("DDIMScheduler", dict(beta_start=1e-4, beta_end=0.02)), ("FlaxPNDMScheduler", dict(beta_start=1e-4, beta_end=0.02)),
  ("HeunDiscreteScheduler", dict(beta_start=0.00085, beta_end=0.012)),
  ("LCMScheduler", dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")),
  ("UnCLIPScheduler", dict(beta_schedule="squaredcos_cap_v2"))])
def test_defaults_are_those_of_the_class(name, like):
  np.testing.assert_array_equal(schedule_from_config(dict(_class_name=name)).alpha, schedule_from_config(like).alpha)


def test_trained_betas():
  schedule = schedule_from_config(dict(trained_betas=[0.1, 0.2, 0.5], num_train_timesteps=3))
  np.testing.assert_allclose(schedule.alpha, np.sqrt([0.9, 0.72, 0.36]), rtol=1e-6)


def test_zero_terminal_snr():
  plain = schedule_from_config(dict(beta_schedule="scaled_linear"))
  zero = schedule_from_config(dict(beta_schedule="scaled_linear", rescale_betas_zero_snr=True))
  assert zero.alpha[-1] == 0 and zero.sigma[-1] == 1 and snr(zero, jnp.array(999)) == 0
  assert zero.alpha[0] == plain.alpha[0]
  assert np.all(np.diff(zero.alpha) < 0)


@pytest.mark.parametrize("config, expected", [
  (dict(beta_schedule="sigmoid"), ["beta_schedule='sigmoid'", "scaled_linear"]),
  (dict(beta_start=0.0), ["beta_start=0.0", "(0, 1)"]),
  (dict(beta_end=2.0), ["beta_end=2.0", "(0, 1)"]),
  (dict(num_train_timesteps=0), ["num_train_timesteps=0", ">= 1"]),
  (dict(trained_betas=[0.1], num_train_timesteps=4), ["trained_betas", "num_train_timesteps=4"]),
  (dict(trained_betas=[0.1, 1.5]), ["trained_betas", "(0, 1)"]),
  (dict(num_train_timesteps=10**9), ["num_train_timesteps=1000000000", "<= 100000"]),
  (dict(num_train_timesteps=True), ["num_train_timesteps=True"]),
  (dict(beta_start="x"), ["beta_start='x'", "(0, 1)"]),
  (dict(beta_end=float("nan")), ["beta_end=nan"]),
  (dict(beta_schedule=["linear"]), ["beta_schedule=['linear']"]),
  (dict(trained_betas="0.1"), ["trained_betas='0.1'"]),
  (dict(trained_betas=[[0.1]], num_train_timesteps=1), ["trained_betas=[[0.1]]"]),
  (dict(rescale_betas_zero_snr="yes"), ["rescale_betas_zero_snr='yes'"]),
  (dict(rescale_betas_zero_snr=True, num_train_timesteps=1), ["rescale_betas_zero_snr=True", "num_train_timesteps=1"]),
  *((dict(_class_name=f"{name}Scheduler"), [f"_class_name='{name}Scheduler'", "DDPMScheduler"]) for name in (
    "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "EDMEuler", "EDMDPMSolverMultistep", "CMStochasticIterative",
    "ScoreSdeVe", "ScoreSdeVp", "KarrasVe", "DDPMWuerstchen", "IPNDM", "CogVideoXDDIM", "SCM", "Amused", "Nobodys")),
  (dict(_class_name=["module", "EDMEulerScheduler"]), ["EDMEulerScheduler"]),
  (dict(_class_name=3), ["_class_name=3"]),
  (dict(_class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True), ["use_flow_sigmas=True", "legal: False"]),
  (dict(_class_name="EulerDiscreteScheduler", timestep_type="continuous"), ["timestep_type='continuous'", "discrete"]),
  (dict(sigma_data=0.5), ["sigma_data=0.5"]),
])
def test_unsupported_values_are_named(config, expected):
  with pytest.raises(ValueError) as error:
    schedule_from_config(config)
  for part in expected:
    assert part in str(error.value)


def test_prediction_type():
  assert prediction_type_from_config({}) == "epsilon"
  for kind in ("epsilon", "v_prediction", "sample"):
    assert prediction_type_from_config(dict(prediction_type=kind)) == kind
  with pytest.raises(ValueError, match="prediction_type='flow'.*v_prediction"):
    prediction_type_from_config(dict(prediction_type="flow"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_add_noise_example_by_example(schedule, dtype):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (3, 4, 4, 2), dtype)
  eps = jax.random.normal(keys[1], (3, 4, 4, 2), dtype)
  t = jnp.array([0, 500, 999])
  z = jax.jit(add_noise)(schedule, x, eps, t)
  assert z.dtype == dtype
  for b in range(3):
    expected = (float(schedule.alpha[t[b]]) * np.asarray(x[b], np.float64)
                + float(schedule.sigma[t[b]]) * np.asarray(eps[b], np.float64))
    np.testing.assert_allclose(np.asarray(z[b], np.float64), expected, atol=1e-6 if dtype == jnp.float32 else 0.04)


def test_per_example_shapes():
  assert per_example(jnp.ones(3), jnp.ones((3, 4, 5))).shape == (3, 1, 1)
  assert per_example(jnp.asarray(2.0), jnp.ones((3, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_flow_schedule():
  """Checks tau = (t + 1) / T: alpha + sigma = 1, no clean step, pure noise at the last step."""
  schedule = flow_schedule(8)
  assert schedule.alpha.dtype == schedule.sigma.dtype == jnp.float32
  np.testing.assert_allclose(schedule.sigma, [(t + 1) / 8 for t in range(8)], rtol=1e-7)
  np.testing.assert_allclose(schedule.alpha, [1 - (t + 1) / 8 for t in range(8)], rtol=1e-7)
  assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == 1 and schedule.sigma[0] > 0


def test_antithetic_noise():
  """Checks opposite partners, independent pairs, and pair i equal to the draw of example i alone."""
  like, key = jnp.zeros((2000, 3)), jax.random.key(0)
  eps = np.asarray(draw_noise(key, jnp.arange(2000), like, True))
  np.testing.assert_array_equal(eps[::2], -eps[1::2])
  np.testing.assert_array_equal(eps[::2], draw_noise(key, jnp.arange(1000), like[:1000]))
  firsts = eps[::2].reshape(-1)
  assert abs(firsts.mean()) < 4 / np.sqrt(3000) and abs(firsts.var() - 1) < 4 * np.sqrt(2 / 3000)
  assert abs(np.corrcoef(eps[:-2:2, 0], eps[2::2, 0])[0, 1]) < 4 / np.sqrt(1000)
  assert np.mean(eps == np.asarray(draw_noise(jax.random.key(1), jnp.arange(2000), like, True))) < 0.01


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_noise_does_not_depend_on_the_layout(antithetic, dtype):
  like, key = jnp.zeros((6, 2, 2), dtype), jax.random.key(2)
  whole = draw_noise(key, jnp.arange(6), like, antithetic)
  parts = [draw_noise(key, index, like[:2], antithetic) for index in (jnp.array([4, 1]), jnp.array([5, 0]))]
  assert whole.dtype == dtype
  np.testing.assert_array_equal(jnp.concatenate(parts), whole[jnp.array([4, 1, 5, 0])])
