"""SDS in other coordinates: exploding variance, straight paths, clean images; the same but for a known factor."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.parameterizations import velocity_denoiser
from sds_jax.diffusion.schedules import flow_schedule, schedule_from_config
from sds_jax.testbed import kl_divergence, laws
from sds_jax.testbed.denoisers import flow_velocity

SAMPLES = 100_000
TIMES = np.array([3, 100, 400, 700, 950])
CURVES = {"scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
          "cosine": dict(beta_schedule="squaredcos_cap_v2")}


@pytest.fixture(scope="module", params=CURVES)
def curve(request):
  return schedule_from_config(CURVES[request.param])


@pytest.fixture(scope="module")
def inputs():
  """x, eps [5, 6], t [5] and a guided condition."""
  rng = np.random.default_rng(5)
  array = lambda width: jnp.asarray(rng.normal(size=(5, width)), jnp.float32)  # noqa: E731
  return array(6), jnp.asarray(TIMES, jnp.int32), array(6), dict(cond=array(3), uncond=array(3))


@pytest.fixture(scope="module")
def ran(curve, network, inputs):
  """(name, options) -> (residual, seen) of the guided network."""
  denoise, params = guided(network[0], "dreamfusion", 4.0), network[1]
  x, t, eps, cond = inputs
  return lambda name, **options: jax.jit(lambda x, eps: ESTIMATORS[name](denoise, params, curve, x, t, eps, cond, None,
                                                                         **options))(x, eps)


def levels(schedule):
  """alpha and sigma [5, 1] at TIMES in float64."""
  return [np.asarray(leaf, np.float64)[TIMES][:, None] for leaf in (schedule.alpha, schedule.sigma)]


def test_sjc_is_sds(ran, curve):
  """Example by example; at t = 3 the division by s = sigma / alpha costs float32 some digits."""
  alpha, sigma = levels(curve)
  expected, seen = ran("sds")
  residual, also = ran("sjc")
  np.testing.assert_array_less(np.abs(residual - expected), 3e-4 + 1e-5 * alpha / sigma + 1e-4 * np.abs(expected))
  np.testing.assert_allclose(also["eps_hat"], seen["eps_hat"], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(also["x0_hat"] * alpha, seen["x0_hat"] * alpha, rtol=1e-4, atol=1e-3)
  assert np.abs(expected).min(1).max() > 0.1


def test_sjc_without_its_control_variate_is_the_prediction(ran, curve):
  alpha, sigma = levels(curve)
  residual, seen = ran("sjc", control_variate=False)
  np.testing.assert_array_less(np.abs(residual - ran("score")[0]),
                               3e-4 + 1e-5 * alpha / sigma + 1e-4 * np.abs(seen["eps_hat"]))


def test_rfds_is_sds_over_one_minus_tau(ran, curve):
  """tau = sigma / (alpha + sigma), so 1 / (1 - tau) = 1 + sigma / alpha."""
  alpha, sigma = levels(curve)
  residual, seen = ran("rfds")
  expected, also = ran("sds")
  np.testing.assert_allclose(residual * (1 - sigma / (alpha + sigma)), expected, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(seen["eps_hat"], also["eps_hat"], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(seen["x0_hat"] * alpha, also["x0_hat"] * alpha, rtol=1e-4, atol=2e-3)


def test_the_residual_is_a_reconstruction_error(ran, curve, inputs):
  """eps_hat - eps = (alpha / sigma) (x - x0_hat), with x0_hat as the estimator reports it."""
  alpha, sigma = levels(curve)
  residual, seen = ran("sds")
  gap = np.asarray(inputs[0], np.float64) - np.asarray(seen["x0_hat"], np.float64)
  np.testing.assert_array_less(np.abs(residual - alpha / sigma * gap), 1e-3 + 1e-4 * np.abs(residual))


MIXED = laws.Mixture(jnp.array([0.5, 0.3, 0.2]), jnp.array([[-1.0], [0.4], [1.5]]), jnp.array([0.15, 0.3, 0.1]))
STEPS = 1000
FLOW = flow_schedule(STEPS)
FLOW_DENOISER = velocity_denoiser(flow_velocity, FLOW)


def exact_velocity(z, tau):
  """E[eps - x | z] of MIXED [N] in float64, component by component: regression of eps - x on z within each."""
  weights, means, stds = (np.asarray(leaf, np.float64).reshape(-1) for leaf in
                          (MIXED.weights, MIXED.means, MIXED.stds))
  variance = (1 - tau) ** 2 * stds**2 + tau**2
  gap = z[:, None] - (1 - tau) * means
  density = weights * np.exp(-0.5 * gap**2 / variance) / np.sqrt(variance)
  slope = (tau - (1 - tau) * stds**2) / variance
  return np.sum(density * (slope * gap - means), axis=1) / density.sum(1)


@pytest.mark.parametrize("tau", [0.05, 0.3, 0.6, 0.95])
def test_rfds_of_an_exact_flow_by_hand(tau):
  """v_hat - (eps - x) at z = (1 - tau) x + tau eps, and its multiple (1 - tau), which SDS gives on that schedule."""
  rng = np.random.default_rng(6)
  x, eps = rng.normal(size=(2, 40))
  t = jnp.full(40, round(tau * STEPS) - 1)
  column = lambda v: jnp.asarray(v, jnp.float32)[:, None]  # noqa: E731
  args = (MIXED, FLOW, column(x), t, column(eps), None, None)
  residual, seen = ESTIMATORS["rfds"](FLOW_DENOISER, *args)
  z = (1 - tau) * x + tau * eps
  velocity = exact_velocity(z, tau)
  np.testing.assert_allclose(residual[:, 0], velocity - (eps - x), rtol=2e-3, atol=2e-3)
  np.testing.assert_allclose(seen["x0_hat"][:, 0], z - tau * velocity, rtol=2e-3, atol=2e-3)
  np.testing.assert_allclose(ESTIMATORS["sds"](FLOW_DENOISER, *args)[0][:, 0], (1 - tau) * (velocity - (eps - x)),
                             rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("tau", [0.25, 0.7])
def test_rfds_descends_the_divergence_along_the_straight_path(tau):
  """Its mean is tau / (1 - tau)^2 times the gradient of KL(N((1 - tau) x, tau^2) || p_tau)."""
  x, t = jnp.full((SAMPLES, 1), -0.4), jnp.full(SAMPLES, round(tau * STEPS) - 1)

  def loss_fn(x):
    return score_distillation(FLOW_DENOISER, MIXED, FLOW, x, jax.random.key(8), None, t=t, weighting="uniform",
                              estimator="rfds")[0]

  found = SAMPLES * np.asarray(jax.jit(jax.grad(loss_fn))(x), np.float64)
  slope = float(jax.grad(lambda x: kl_divergence.kl(MIXED, x, 1 - tau, tau))(jnp.array([-0.4]))[0])
  expected, error = tau / (1 - tau) ** 2 * slope, found.std() / np.sqrt(SAMPLES)
  assert abs(found.mean() - expected) < 4 * error
  assert abs(expected) > 20 * error
