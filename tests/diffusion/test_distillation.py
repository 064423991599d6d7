"""Score distillation with exact denoisers and known answers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.schedules import draw_noise

SAMPLES = 100_000
SDS = ESTIMATORS["sds"]


def closed_form(schedule, t):
  """Returns alpha and sigma in float64, with sigma^2 = 1 - alpha^2 in place of the sigma of the schedule."""
  alpha = float(schedule.alpha[t])
  return alpha, np.sqrt(1 - alpha**2)


@pytest.fixture(scope="module")
def gradients(schedule, exact):
  """Returns name -> (x [B, 1], t, cond, params, key) -> gradients [B, 1] without the mean over B."""

  def gradient_fn(denoise_fn):
    def loss_fn(x, t, cond, params, key):
      t = jnp.broadcast_to(t, x.shape[:1])
      return score_distillation(denoise_fn, params, schedule, x, key, cond, t=t, weighting="sigma2")[0]
    grad_fn = jax.jit(jax.grad(loss_fn))
    return lambda x, *args: np.asarray(grad_fn(x, *args), np.float64) * x.shape[0]

  return dict(gaussian=gradient_fn(exact.gaussian), mixture=gradient_fn(exact.mixture))


@pytest.mark.parametrize("t", [100, 500, 900])
def test_gaussian_mean_and_variance(schedule, gradients, t):
  """Compares with closed forms for data N(m, c^2).

  E[eps* - eps] = sigma alpha (x - m) / v, Var = (sigma^2 / v - 1)^2, v = alpha^2 c^2 + sigma^2.
  """
  mean, std, x = 0.3, 0.6, 1.1
  ones = jnp.ones((SAMPLES, 1))
  alpha, sigma = closed_form(schedule, t)
  v = alpha**2 * std**2 + sigma**2
  g = gradients["gaussian"](x * ones, t, dict(mean=mean * ones, std=std * ones), None, jax.random.key(0))
  deviation = sigma**2 * abs(sigma**2 / v - 1)
  standard_error = deviation / np.sqrt(SAMPLES)
  assert abs(g.mean() - sigma**2 * sigma * alpha * (x - mean) / v) < 4 * standard_error
  assert abs(g.var() / deviation**2 - 1) < 4 * np.sqrt(2 / SAMPLES)


def test_subtracting_the_noise_helps_only_at_high_noise(schedule, exact):
  """Checks Var(eps* - eps) < Var(eps*) exactly for sigma^2 > alpha^2 c^2 (for unit data: around the middle)."""
  std, index = 1.0, jnp.arange(2000)
  eps = draw_noise(jax.random.key(5), index, jnp.zeros((2000, 1)))
  x, cond = jnp.zeros((2000, 1)), dict(mean=jnp.zeros((2000, 1)), std=jnp.full((2000, 1), std))
  run = jax.jit(lambda t: SDS(exact.gaussian, None, schedule, x, t, eps, cond))
  helped = {}
  for t in (50, 950):
    residual, values = run(jnp.full(2000, t))
    alpha, sigma = closed_form(schedule, t)
    helped[t] = bool(residual.var() < values["eps_hat"].var()), sigma**2 > alpha**2 * std**2
  assert helped == {50: (False, False), 950: (True, True)}


MIXTURE = dict(weights=np.array([0.5, 0.3, 0.2]), means=np.array([-1.0, 0.4, 1.5]), stds=np.array([0.15, 0.3, 0.1]))


def kl(x, alpha, sigma):
  """Computes KL(N(alpha x, sigma^2) || p_t) for the mixture by Gauss-Hermite quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(80)
  z = alpha * x + sigma * nodes
  var = (alpha**2 * MIXTURE["stds"] ** 2 + sigma**2)[:, None]
  gap = z[None] - alpha * MIXTURE["means"][:, None]
  parts = MIXTURE["weights"][:, None] / jnp.sqrt(2 * np.pi * var) * jnp.exp(-0.5 * gap**2 / var)
  log_q = -0.5 * nodes**2 - jnp.log(sigma * np.sqrt(2 * np.pi))
  return jnp.sum(weights / weights.sum() * (log_q - jnp.log(parts.sum(0))))


KL_GRADIENT = jax.jit(jax.grad(kl))


def weighted_kl_gradient(schedule, x, t):
  """Computes d/dx (sigma/alpha) w KL with w = sigma^2 by autodiff in float64."""
  alpha, sigma = closed_form(schedule, t)
  with jax.enable_x64(True):
    gradient = KL_GRADIENT(*(jnp.asarray(value, jnp.float64) for value in (x, alpha, sigma)))
  assert gradient.dtype == np.float64
  return float(gradient) * sigma / alpha * sigma**2


def float32_mixture():
  return {name: jnp.asarray(value, jnp.float32) for name, value in MIXTURE.items()}


@pytest.fixture(scope="module")
def mixture_residual(schedule, exact):
  return jax.jit(lambda x, t, eps: SDS(exact.mixture, float32_mixture(), schedule, x, t, eps, None)[0])


@pytest.mark.parametrize("t", [200, 500, 900])
@pytest.mark.parametrize("x", [-0.4, 1.2])
def test_expected_residual_is_the_gradient_of_the_weighted_kl(schedule, mixture_residual, t, x):
  """Checks the identity of DreamFusion, eq. 4, for a mixture, with the expectation over eps by quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(80)
  eps = jnp.asarray(nodes, jnp.float32)[:, None]
  residual, weights = mixture_residual(jnp.full(eps.shape, x), jnp.full(80, t), eps), weights / weights.sum()
  expected = weighted_kl_gradient(schedule, x, t)
  sigma2 = closed_form(schedule, t)[1] ** 2
  assert abs(sigma2 * np.sum(weights * np.asarray(residual[:, 0], np.float64)) - expected) < 2e-5
  assert abs(expected) > 1e-3


@pytest.mark.parametrize("t", [300, 800])
def test_monte_carlo_estimate_of_the_weighted_kl_gradient(schedule, gradients, t):
  x = jnp.full((SAMPLES, 1), -0.4)
  g = gradients["mixture"](x, t, None, float32_mixture(), jax.random.key(1))
  expected = weighted_kl_gradient(schedule, -0.4, t)
  standard_error = g.std() / np.sqrt(SAMPLES)
  assert abs(g.mean() - expected) < 4 * standard_error
  assert abs(expected) > 20 * standard_error  # large enough to reject a wrong sign or factor


@pytest.mark.parametrize("convention, scale", [("dreamfusion", 7.5), ("diffusers", 8.5)])
def test_fixed_point_under_guidance(schedule, exact, convention, scale):
  """Checks the optimum for two Gaussians of equal width, m_c + omega (m_c - m_u) = 8.5, outside both."""
  denoise, ones = guided(exact.gaussian, convention, scale), jnp.ones((32, 1))
  cond = dict(cond=dict(mean=ones, std=0.5 * ones), uncond=dict(mean=0 * ones, std=0.5 * ones))

  def step(x, key):
    loss = lambda x: score_distillation(denoise, None, schedule, x * ones, key, cond)[0]  # noqa: E731
    x = x - 0.3 * jax.grad(loss)(x)
    return x, x

  _, path = jax.jit(lambda: jax.lax.scan(step, jnp.float32(0), jax.random.split(jax.random.key(0), 600)))()
  # Noise in the mean over the last 400 steps: about 0.02.
  assert abs(float(path[200:].mean()) - 8.5) < 0.1


def test_cotangent_is_a_mean_over_examples_and_a_sum_over_pixels(schedule, network):
  denoise, params = network
  rng = np.random.default_rng(0)
  x, cond = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32), jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
  scale = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
  def loss_fn(x):
    return score_distillation(denoise, params, schedule, x, jax.random.key(0), cond, scale=scale,
                              weighting="alpha_sigma2")

  g, aux = jax.jit(jax.grad(loss_fn, has_aux=True))(x)
  for b in range(5):
    alpha, sigma = closed_form(schedule, int(aux.t[b]))
    z = (alpha * np.asarray(x[b]) + sigma * np.asarray(aux.eps[b])).astype(np.float32)
    eps_hat = np.asarray(denoise(params, jnp.asarray(z)[None], aux.t[b][None], cond[b][None]))[0]
    whole = float(scale[b]) * alpha * sigma**2 * (eps_hat - np.asarray(aux.eps[b]))
    np.testing.assert_allclose(g[b], whole / 5, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(aux.grad_norm[b], np.linalg.norm(whole), rtol=1e-4)
    np.testing.assert_allclose(aux.eps_hat[b], eps_hat, atol=1e-4)
    np.testing.assert_allclose(aux.x0_hat[b], (z - sigma * eps_hat) / alpha, rtol=1e-3, atol=1e-4)


def test_a_custom_weighting_and_the_reconstruction_form(schedule, network):
  """Checks a residual x - x0_hat for w = sigma / alpha, sample by sample."""
  denoise, params = network
  x, cond = jnp.ones((4, 6)), jnp.ones((4, 3))
  def gradient(weighting):
    def loss_fn(x):
      return score_distillation(denoise, params, schedule, x, jax.random.key(1), cond, weighting=weighting)
    return jax.jit(jax.grad(loss_fn, has_aux=True))(x)

  named, aux = gradient("sigma_over_alpha")
  np.testing.assert_allclose(4 * named, x - aux.x0_hat, atol=1e-3)
  custom, _ = gradient(lambda schedule, t: schedule.sigma[t] / schedule.alpha[t])
  np.testing.assert_array_equal(custom, named)


def test_clipping_shortens_only_long_gradients(schedule, network):
  denoise, params = network
  x, cond = jnp.ones((6, 6)), jnp.ones((6, 3))

  def grad_of(clip):
    def loss_fn(x):
      return score_distillation(denoise, params, schedule, x, jax.random.key(2), cond, clip_norm=clip)
    return jax.jit(jax.grad(loss_fn, has_aux=True))(x)

  free, aux = grad_of(None)
  bound = float(np.median(aux.grad_norm))
  clipped, clipped_aux = grad_of(bound)
  norms = np.asarray(aux.grad_norm)
  np.testing.assert_allclose(6 * np.linalg.norm(clipped, axis=1), np.minimum(norms, bound), rtol=1e-5)
  np.testing.assert_allclose(clipped / np.minimum(1, bound / norms)[:, None], free, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(clipped_aux.grad_norm, norms, rtol=1e-6)


def test_draws(schedule, network):
  """Checks new draws per key and example, t in the range, and standard normal eps independent of t."""
  denoise, params = network

  @jax.jit
  def draw(key):
    x, cond = jnp.zeros((4000, 6)), jnp.ones((4000, 3))
    return score_distillation(denoise, params, schedule, x, key, cond, t_range=(0.1, 0.4))[1]

  first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
  assert first.t.min() >= 100 and first.t.max() <= 400 and len(np.unique(first.t)) > 250
  eps = np.asarray(first.eps)
  assert abs(eps.mean()) < 4 / np.sqrt(eps.size) and abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)
  correlation = np.corrcoef(np.concatenate([eps, np.asarray(second.eps), np.asarray(first.t)[:, None]], axis=1).T)
  assert np.abs(correlation - np.eye(13)).max() < 5 / np.sqrt(4000)


def test_errors_name_the_legal_values(schedule, network):
  denoise, params = network
  def call(**options):
    args = (denoise, params, schedule, jnp.ones((2, 6)), jax.random.key(0), jnp.ones((2, 3)))
    jax.eval_shape(lambda: score_distillation(*args, **options))

  with pytest.raises(ValueError, match="'snr' is not known; legal: uniform, sigma2"):
    call(weighting="snr")
  with pytest.raises(ValueError, match="'no such' is not known; legal: sds"):
    call(estimator="no such")
