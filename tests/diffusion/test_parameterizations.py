import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import parameterizations as p
from sds_jax.diffusion.schedules import schedule_from_config

T = jnp.array([1, 300, 700, 990])


@pytest.fixture(scope="module")
def path(schedule):
  """Computes a point on four paths in all four parameterizations, in float64."""
  rng = np.random.default_rng(0)
  x0, eps = rng.normal(size=(2, 4, 3, 2))
  alpha = np.asarray(schedule.alpha, np.float64)[np.asarray(T)][:, None, None]
  sigma = np.asarray(schedule.sigma, np.float64)[np.asarray(T)][:, None, None]
  values = dict(z=alpha * x0 + sigma * eps, x0=x0, eps=eps, v=alpha * eps - sigma * x0)
  return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


@pytest.mark.parametrize("have", ["x0", "eps", "v"])
@pytest.mark.parametrize("want", ["x0", "eps", "v"])
def test_every_direction(schedule, path, have, want):
  if have == want:
    return
  convert = getattr(p, f"{want}_from_{have}")
  actual = jax.jit(convert)(schedule, path["z"], T, path[have])
  # float32 z is divided by alpha >= 0.07 or sigma >= 0.04
  np.testing.assert_allclose(actual, path[want], atol=2e-4)


def test_velocity_is_the_derivative_along_the_angle(schedule, path):
  """Checks v = dz/dphi for alpha = cos phi and sigma = sin phi (arXiv:2202.00512)."""
  phi = np.arctan2(np.asarray(schedule.sigma, np.float64)[T], np.asarray(schedule.alpha, np.float64)[T])[:, None, None]
  x0, eps = np.asarray(path["x0"], np.float64), np.asarray(path["eps"], np.float64)
  z = lambda angle: np.cos(angle) * x0 + np.sin(angle) * eps  # noqa: E731
  np.testing.assert_allclose(p.v_from_eps(schedule, path["z"], T, path["eps"]),
                             (z(phi + 1e-5) - z(phi - 1e-5)) / 2e-5, atol=2e-4)


def test_table_of_prediction_types(schedule, path):
  for kind, value in dict(epsilon="eps", v_prediction="v", sample="x0").items():
    np.testing.assert_allclose(p.EPS_FROM[kind](schedule, path["z"], T, path[value]), path["eps"], atol=2e-4)


def test_ends_stay_finite_with_finite_gradients():
  schedule = schedule_from_config(dict(beta_schedule="scaled_linear", rescale_betas_zero_snr=True))
  schedule = schedule.replace(alpha=schedule.alpha.at[0].set(1.0), sigma=schedule.sigma.at[0].set(0.0))
  t = jnp.array([0, 999])  # sigma = 0, then alpha = 0
  z = jnp.array([[0.3], [-0.7]])
  prediction = jnp.array([[0.2], [0.4]])
  for convert in (p.x0_from_eps, p.x0_from_v, p.eps_from_x0, p.eps_from_v, p.v_from_eps, p.v_from_x0):
    value, gradient = jax.value_and_grad(lambda z: convert(schedule, z, t, prediction).sum())(z)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)), convert.__name__
  np.testing.assert_allclose(p.x0_from_eps(schedule, z, t, prediction), [[0.3], [0.0]], atol=1e-7)
  np.testing.assert_allclose(p.eps_from_x0(schedule, z, t, prediction), [[0.0], [-0.7]], atol=1e-7)
  np.testing.assert_allclose(p.x0_from_v(schedule, z, t, prediction), [[0.3], [-0.4]], atol=1e-7)
  np.testing.assert_allclose(p.eps_from_v(schedule, z, t, prediction), [[0.2], [-0.7]], atol=1e-7)


def test_flow():
  rng = np.random.default_rng(2)
  x0, eps = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 3, 4)))
  t = jnp.array([0.1, 0.5, 0.9])
  z = p.flow_interpolate(x0, eps, t)
  np.testing.assert_allclose(z[0], 0.9 * np.asarray(x0[0]) + 0.1 * np.asarray(eps[0]), atol=1e-6)
  step = (p.flow_interpolate(x0, eps, t + 1e-2) - z) / 1e-2
  u = p.flow_velocity(x0, eps)
  np.testing.assert_allclose(u, step, atol=1e-4)
  np.testing.assert_allclose(p.x0_from_flow(z, t, u), x0, atol=1e-5)
  np.testing.assert_allclose(p.eps_from_flow(z, t, u), eps, atol=1e-5)
  np.testing.assert_allclose(p.flow_from_x0(z, t, x0), u, atol=1e-5)
  np.testing.assert_allclose(p.flow_from_eps(z, t, eps), u, atol=1e-5)


def test_flow_residual_is_the_noise_residual_reweighted():
  """Checks u_hat - (eps - x) = (eps_hat - eps) / (1 - t) = (x - x0_hat) / t, sample by sample."""
  rng = np.random.default_rng(3)
  x, eps, u_hat = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 2, 4)))
  t = jnp.array([0.2, 0.7])
  z = p.flow_interpolate(x, eps, t)
  residual = u_hat - p.flow_velocity(x, eps)
  np.testing.assert_allclose(residual, (p.eps_from_flow(z, t, u_hat) - eps) / (1 - t)[:, None], atol=1e-5)
  np.testing.assert_allclose(residual, (x - p.x0_from_flow(z, t, u_hat)) / t[:, None], atol=1e-5)
