"""The experiments of the study against closed forms for Gaussians and against `score_distillation`."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import guided, schedule_from_config, score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.testbed import experiments, laws, suite, toy_laws
from sds_jax.testbed.denoisers import vp_denoiser
from sds_jax.testbed.estimator_settings import SETTINGS

SCHEDULE = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
STD = 0.3


def gradient(name, label_laws, omega, x, t, eps, seed=0, start=None):
  """Computes the gradient of a particle; the source of DDS and PDS is its own position."""
  return _gradient(name, label_laws, omega, x, t, eps, seed, x if start is None else start)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(name, label_laws, omega, x, t, eps, seed, start):
  return experiments.gradient(name, label_laws, SCHEDULE, omega, x, t, eps, jax.random.key(3), start=start, seed=seed,
                              particle_law=laws.gaussian(jnp.zeros_like(x), 1.0), progress=0.5)


PLANE = jax.jit(toy_laws.plane)()


def end(name, omega, law=experiments.kernel_law, count=24):
  """Returns end points and residual motion of numbers under `toy_laws.two_gaussians`."""
  start = STD * jax.random.normal(jax.random.key(1), (count, 1))
  run = jax.jit(lambda: experiments.descend(name, toy_laws.two_gaussians(STD), SCHEDULE, omega, jax.random.key(2),
                                            start, 300, 0.1, law))
  x, moving = run()
  return np.asarray(x)[:, 0], float(moving)


def test_every_estimator_has_settings():
  # The second term of "hifa" needs an image behind latents, and particles have none.
  assert list(SETTINGS) == [name for name in ESTIMATORS if name != "hifa"]
  assert experiments.time_span("sds") == (0.02, 0.98) and experiments.time_span("asd") == (0.02, 0.98)
  assert experiments.time_span("cds") == (0.1, 0.7)


@pytest.mark.parametrize("name, omega", [("sds", 4.0), ("sjc", 2.0), ("rfds", 2.0), ("vsd", 2.0)])
def test_guidance_saturates_as_the_closed_form_says(name, omega):
  """Compares with 1 + omega, the zero of (1 + omega) (x - 1) - omega x."""
  x, moving = end(name, omega, experiments.gaussian_law)
  np.testing.assert_allclose(np.median(x), 1.0 + omega, rtol=0.02)
  assert moving < suite.STILL_MOVING


def test_classifier_score_distillation_never_rests():
  """Checks a steady drift: scores of two Gaussians of equal width differ by a constant."""
  x, moving = end("csd", 0.0)
  assert moving > 0.8 and np.median(x) > 10.0


def test_width_of_the_data_is_recovered_by_vsd_alone():
  wide, _ = end("vsd", 0.0, experiments.gaussian_law)
  narrow, _ = end("sds", 0.0)
  np.testing.assert_allclose(wide.std(), STD, rtol=0.05)
  np.testing.assert_allclose([wide.mean(), narrow.mean()], 1.0, atol=0.05)
  assert narrow.std() < 0.1 * STD


@pytest.mark.parametrize("name", ["sds", "score"])
def test_mean_and_variance_of_a_gaussian(name):
  """Compares with eps_hat = s (z - a m) / v.

  The mean is s a (x - m) / v. The variance is (s^2 / v - 1)^2, or (s^2 / v)^2 without subtracting the noise.
  """
  points = jnp.array([[0.2], [2.0]])
  measured = jax.jit(lambda points: experiments.gradient_over_time(
    name, toy_laws.two_gaussians(STD), SCHEDULE, jax.random.key(0), points, laws.gaussian(jnp.zeros(1), 1.0), times=4,
    nodes=16, draws=2))(points)
  t = (np.asarray(measured["t"]) * 1000).astype(int)
  a, s = np.asarray(SCHEDULE.alpha)[t, None], np.asarray(SCHEDULE.sigma)[t, None]
  v = a**2 * STD**2 + s**2
  expected = s**2 * s * a * (np.asarray(points).T - 1.0) / v
  np.testing.assert_allclose(measured["mean"], expected, rtol=2e-3, atol=2e-5)
  np.testing.assert_allclose(measured["exact"], expected, rtol=2e-3, atol=2e-5)
  slope = s**2 / v - (name == "sds")
  np.testing.assert_allclose(measured["variance"], np.broadcast_to(s**4 * slope**2, (4, 2)), rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sds", "csd", "ldiff", "ism"])
def test_the_gradient_equals_score_distillation(name):
  label_laws, x, omega, t = PLANE, jnp.array([[0.4, -0.9]]), 2.0, jnp.array([300])
  cond = dict(cond=jnp.array([toy_laws.TARGET]), uncond=jnp.array([toy_laws.NULL]))
  expected, aux = jax.jit(jax.grad(lambda x: score_distillation(
    guided(vp_denoiser(SCHEDULE), "dreamfusion", omega), label_laws, SCHEDULE, x, jax.random.key(5), cond, t=t,
    estimator=name, weighting=SETTINGS[name].weighting), has_aux=True))(x)
  actual = gradient(name, label_laws, omega, x[0], t[0], aux.eps[0])
  assert float(jnp.abs(actual).min()) > 1e-4
  np.testing.assert_allclose(actual, expected[0], rtol=1e-4)


def test_each_particle_has_its_source_and_its_noise():
  """Checks DDS equal to CSD at the start only, and a fixed noise of CDS for each seed."""
  label_laws, x, eps, t = PLANE, jnp.array([0.4, -0.9]), jnp.array([0.3, 0.1]), jnp.int32(300)
  at_start = gradient("dds", label_laws, 0.0, x, t, eps)
  np.testing.assert_allclose(at_start, gradient("csd", label_laws, 0.0, x, t, eps), rtol=1e-5)
  assert not np.allclose(at_start, gradient("dds", label_laws, 0.0, x, t, eps, start=x + 0.5), rtol=0.05)
  first, again, other = (gradient("cds", label_laws, 0.0, x, t, eps, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, other, rtol=0.05)


def test_the_field_points_at_the_target():
  """Checks the gradient of SDS far on either side of the target law."""
  points = jnp.array([[-3.0, 0.0], [6.0, 0.0]])
  mean = jax.jit(lambda points: experiments.field(
    "sds", PLANE, SCHEDULE, 0.0, jax.random.key(0), points, laws.gaussian(jnp.zeros(2), 1.0), draws=64))(points)
  assert mean[0, 0] < -0.05 and mean[1, 0] > 0.05 and float(jnp.abs(mean[:, 1]).max()) < 0.1


def test_the_null_law_of_two_gaussians_is_the_other_gaussian():
  """Checks the condition of the closed form of guidance."""
  law = toy_laws.law_of(toy_laws.two_gaussians(STD), toy_laws.NULL)
  np.testing.assert_allclose(laws.log_density(law, jnp.array([0.5]), 1.0, 0.4),
                             laws.log_density(laws.gaussian(jnp.zeros(1), STD), jnp.array([0.5]), 1.0, 0.4), rtol=1e-5)
