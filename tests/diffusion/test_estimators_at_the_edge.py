"""Estimators on schedules that do not preserve variance, in half precision, and at pure noise."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.schedules import flow_schedule
from sds_jax.testbed import denoisers, laws

FLOW = flow_schedule(1000)
X, EPS = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(2, 4, 6)))
KEYS = jax.random.split(jax.random.key(0), 4)
HALF = [X.astype(jnp.bfloat16), EPS.astype(jnp.bfloat16)]


def test_sjc_is_sds_on_a_straight_path_too():
  """There alpha is not 1 / sqrt(1 + s^2), and the network must still be asked at z_t."""
  law, t = laws.gaussian(jnp.full(6, 0.4), 0.5), jnp.array([40, 300, 600, 900])
  run = lambda name: ESTIMATORS[name](denoisers.vp_denoiser(FLOW), law, FLOW, X, t, EPS, None)[0]  # noqa: E731
  sds, sjc = run("sds"), run("sjc")
  np.testing.assert_allclose(sjc, sds, rtol=1e-3, atol=1e-3)
  assert np.abs(sds).max() > 0.5


@pytest.mark.parametrize("name", ["sjc", "rfds"])
def test_differences_of_like_numbers_are_not_taken_in_half_precision(schedule, name):
  """x - D(y) at little noise, a velocity at much: a network that says 1 leaves 1 - eps, for RFDS over 1 - tau."""
  t = jnp.array([1, 20, 900, 995])
  one = lambda params, z, t, cond: jnp.ones_like(z)  # noqa: E731
  found, seen = ESTIMATORS[name](one, None, schedule, HALF[0], t, HALF[1], None)
  alpha, sigma = (np.asarray(table, np.float64)[np.asarray(t)][:, None] for table in (schedule.alpha, schedule.sigma))
  factor = (alpha + sigma) / alpha if name == "rfds" else 1.0
  np.testing.assert_allclose(found, (1.0 - np.asarray(HALF[1], np.float64)) * factor, rtol=1e-3, atol=1e-3)
  assert seen["x0_hat"].dtype == seen["eps_hat"].dtype == jnp.bfloat16


def test_pds_in_half_precision(schedule):
  """A network that says 0 leaves psi (x - x'), with psi of DDPM's posterior in float64; e cancels."""
  bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
  t = np.array([50, 200, 500, 800])
  last, beta = bar[t - 2], 1 - bar[t] / bar[t - 1]
  deviation = np.sqrt((1 - last) / (1 - bar[t]) * beta)
  psi = (np.sqrt(last) - np.sqrt(last) * beta / (1 - bar[t])
         - np.sqrt(1 - beta) * (1 - last) / (1 - bar[t]) * np.sqrt(bar[t])) / deviation
  source = HALF[0][::-1]
  found, _ = ESTIMATORS["pds"](lambda params, z, t, cond: 0 * z, None, schedule, HALF[0], jnp.asarray(t), HALF[1], None,
                               KEYS, source_x=source, source_cond=None)
  apart = np.asarray(HALF[0], np.float64) - np.asarray(source, np.float64)
  np.testing.assert_allclose(found, psi[:, None] * apart, rtol=5e-3, atol=1e-3)


def test_sdi_up_to_pure_noise_with_steps_to_spare():
  """On a straight path alpha is 0 at the last time; steps that are left over there add nothing, and no NaN."""
  found, _ = jax.jit(lambda x: ESTIMATORS["sdi"](
    denoisers.vp_denoiser(FLOW), laws.gaussian(jnp.full(6, 0.4), 0.0), FLOW, x, jnp.array([100, 500, 998, 999]), EPS,
    None, KEYS, steps=14))(X)
  assert np.all(np.isfinite(found))


def test_vsds_second_network_is_told_its_own_condition(schedule):
  """score_cond, not cond."""
  tell = lambda params, z, t, cond: cond  # noqa: E731
  found, _ = ESTIMATORS["vsd"](tell, None, schedule, X, jnp.full(4, 500), EPS, 3 * jnp.ones_like(X),
                               score_fn=tell, score_params=None, score_cond=jnp.ones_like(X))
  np.testing.assert_array_equal(found, 2 * np.ones_like(X))
