"""The full gradient of the training loss, against forward-mode Jacobians and the closed form for a Gaussian."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided

TIMES = (20, 400, 900)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(11)
  array = lambda width: jnp.asarray(rng.normal(size=(3, width)), jnp.float32)  # noqa: E731
  return array(6), jnp.array(TIMES), array(6), dict(cond=array(3), uncond=array(3))


@pytest.fixture(scope="module", params=["plain", "guided"])
def asked(request, network, inputs):
  """(denoise_fn, params, cond), with guidance and without."""
  denoise, params = network
  if request.param == "plain":
    return denoise, params, inputs[3]["cond"]
  return guided(denoise, "diffusers", 3.0), params, inputs[3]


def levels(schedule, t):
  alpha = float(schedule.alpha[t])
  return alpha, np.sqrt(1 - alpha**2)


def test_it_is_alpha_times_the_jacobian_times_sds(schedule, asked, inputs):
  denoise, params, cond = asked
  x, t, eps, _ = inputs
  found, seen = jax.jit(lambda x: ESTIMATORS["ldiff"](denoise, params, schedule, x, t, eps, cond, None))(x)
  plain, also = ESTIMATORS["sds"](denoise, params, schedule, x, t, eps, cond, None)
  for b, time in enumerate(TIMES):
    alpha, sigma = levels(schedule, time)
    side = jax.tree.map(lambda leaf: leaf[b:b + 1], cond)
    of_z = lambda z: denoise(params, z[None], t[b:b + 1], side)[0]  # noqa: B023, E731
    jacobian = np.asarray(jax.jacfwd(of_z)(alpha * x[b] + sigma * eps[b]), np.float64)
    np.testing.assert_allclose(found[b], alpha * jacobian.T @ np.asarray(plain[b], np.float64), rtol=2e-3, atol=2e-3)
    assert np.abs(jacobian - jacobian.T).max() > 0.1  # so that J in place of J^T is seen
  for name in seen:
    np.testing.assert_allclose(seen[name], also[name], rtol=1e-4, atol=1e-4)


def test_it_is_the_gradient_of_half_the_squared_error(schedule, asked, inputs):
  denoise, params, cond = asked
  x, t, eps, _ = inputs
  alpha, sigma = (jnp.array([levels(schedule, time)[i] for time in TIMES], jnp.float32)[:, None] for i in range(2))
  loss = lambda x: 0.5 * jnp.sum((denoise(params, alpha * x + sigma * eps, t, cond) - eps) ** 2)  # noqa: E731
  found, _ = ESTIMATORS["ldiff"](denoise, params, schedule, x, t, eps, cond, None)
  expected = jax.grad(loss)(x)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
  assert np.abs(expected).max() > 1


@pytest.mark.parametrize("t", [1, 60, 300, 600, 990])
def test_its_mean_on_a_gaussian(schedule, exact, t):
  """sigma alpha (x - m) / v times alpha sigma / v; the residual is linear in eps, so 8 nodes give its mean exactly."""
  mean, std, x = 0.3, 0.6, 1.4
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  ones = jnp.ones((8, 1))
  cond = dict(mean=mean * ones, std=std * ones)
  residual = {name: ESTIMATORS[name](exact.gaussian, None, schedule, x * ones, jnp.full(8, t),
                                     jnp.asarray(nodes, jnp.float32)[:, None], cond, None)[0] for name in
              ("sds", "ldiff")}
  means = {name: weights @ np.asarray(r[:, 0], np.float64) / weights.sum() for name, r in residual.items()}
  alpha, sigma = levels(schedule, t)
  v = alpha**2 * std**2 + sigma**2
  np.testing.assert_allclose(means["sds"], sigma * alpha * (x - mean) / v, rtol=1e-3)
  np.testing.assert_allclose(means["ldiff"], sigma * alpha * (x - mean) / v * alpha * sigma / v, rtol=1e-3)


def test_it_vanishes_at_little_noise(schedule, exact):
  """Beside SDS it loses a factor alpha sigma / v, which goes to 0 with sigma for data of some width."""
  ones = jnp.ones((1, 1))
  ratio = {}
  for t in (0, 300):
    args = (exact.gaussian, None, schedule, 2 * ones, jnp.array([t]), 0.5 * ones, dict(mean=ones, std=ones), None)
    ratio[t] = float((ESTIMATORS["ldiff"](*args)[0] / ESTIMATORS["sds"](*args)[0])[0, 0])
  assert 0 < ratio[0] < 0.05 and ratio[300] > 0.25


def test_without_a_network_that_looks_it_is_zero(schedule, inputs):
  x, t, eps, _ = inputs
  blind = lambda params, z, t, cond: cond  # noqa: E731
  residual, seen = ESTIMATORS["ldiff"](blind, None, schedule, x, t, eps, 2 * eps, None)
  np.testing.assert_array_equal(residual, np.zeros_like(x))
  np.testing.assert_array_equal(seen["eps_hat"], 2 * eps)
