"""The exact laws against slow sums, autodiff, scipy's quadrature and closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.testbed import denoisers, kl_divergence, laws

A, S = 0.6, 0.8


@pytest.fixture(scope="module")
def law():
  """Returns a law of three components over 2x2 arrays."""
  rng = np.random.default_rng(0)
  return laws.Mixture(jnp.array([0.5, 0.3, 0.2]), jnp.asarray(rng.normal(size=(3, 2, 2)), jnp.float32),
                      jnp.array([0.1, 0.4, 0.0]))


def slow(law, z, a, s):
  """Computes log p, E[eps | z] and E[x | z] by a loop over components in float64."""
  weights, means, stds = (np.asarray(leaf, np.float64) for leaf in (law.weights, law.means, law.stds))
  densities, eps, clean = [], 0.0, 0.0
  for w, m, c in zip(weights, means, stds):
    v = a**2 * c**2 + s**2
    densities.append(w * np.prod(np.exp(-0.5 * (z - a * m) ** 2 / v) / np.sqrt(2 * np.pi * v)))
  for p, m, c in zip(densities, means, stds):
    share, gain = p / sum(densities), 1.0 / (a**2 * c**2 + s**2)
    eps = eps + share * s * gain * (z - a * m)
    clean = clean + share * (m + a * c**2 * gain * (z - a * m))
  return np.log(sum(densities)), eps, clean


def test_against_a_loop(law):
  z = np.random.default_rng(1).normal(size=(2, 2))
  functions = (laws.log_density, laws.expected_noise, laws.expected_clean)
  actual = [f(law, jnp.asarray(z, jnp.float32), A, S) for f in functions]
  for value, expected in zip(actual, slow(law, z, A, S)):
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(A * actual[2] + S * actual[1], z, atol=1e-5)  # z = a E[x | z] + s E[eps | z]
  np.testing.assert_allclose(actual[1], -S * jax.grad(lambda z: laws.log_density(law, z, A, S))(
    jnp.asarray(z, jnp.float32)), rtol=1e-4, atol=1e-5)


def test_pure_noise_gives_the_mean_of_the_data(law):
  mean = np.tensordot(np.asarray(law.weights), np.asarray(law.means), axes=1)
  np.testing.assert_allclose(laws.expected_clean(law, jnp.ones((2, 2)), 0.0, 1.0), mean, atol=1e-6)


def test_draws_have_the_moments_of_the_law(law):
  x = np.asarray(laws.sample(law, jax.random.key(0), 20_000)).reshape(-1, 4)
  weights, means, stds = (np.asarray(leaf) for leaf in (law.weights, law.means.reshape(3, 4), law.stds))
  mean = weights @ means
  variance = weights @ (means**2 + stds[:, None] ** 2) - mean**2
  np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(variance.max() / 20_000))
  np.testing.assert_allclose(x.var(0), variance, rtol=0.06)


def test_labels_and_the_null_label():
  """Checks the law of each label and the null label; padding components have no effect."""
  one, two = laws.dataset(jnp.array([[0.0], [1.0]]), 0.1), laws.gaussian(jnp.array([3.0]), 0.2)
  params = denoisers.with_null_label(laws.stack([one, two]), jnp.array([0.25, 0.75]))
  assert params.weights.shape == (3, 4)
  schedule = schedule_from_config(dict(beta_schedule="linear"))
  z, t = jnp.array([[0.7], [0.7], [0.7]]), jnp.array([100, 100, 100])
  predicted = denoisers.vp_denoiser(schedule)(params, z, t, jnp.array([0, 1, 2]))
  a, s = float(schedule.alpha[100]), float(schedule.sigma[100])
  both = laws.Mixture(jnp.array([0.125, 0.125, 0.75]), jnp.array([[0.0], [1.0], [3.0]]), jnp.array([0.1, 0.1, 0.2]))
  for value, law in zip(predicted, (one, two, both)):
    np.testing.assert_allclose(value, slow(law, np.array([0.7]), a, s)[1], rtol=2e-4)
  np.testing.assert_allclose(denoisers.vp_denoiser(schedule)(two, z, t, None), jnp.broadcast_to(predicted[1], (3, 1)),
                             rtol=1e-5)


def test_velocity_of_the_flow(law):
  """Compares with E[eps - x | z], the difference of the two posterior means, at every time."""
  z, t = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 2)), jnp.float32), jnp.array([0.05, 0.4, 0.9, 1.0])
  velocity = denoisers.flow_velocity(law, z, t, None)
  for i in range(4):
    _, eps, clean = slow(law, np.asarray(z[i], np.float64), 1.0 - float(t[i]), float(t[i]))
    np.testing.assert_allclose(velocity[i], eps - clean, rtol=2e-3, atol=2e-4)


def test_divergence_of_a_gaussian_in_closed_form():
  """Compares KL(N(a x, s^2 I) || N(a m, v I)) in two dimensions, and its gradient a^2 (x - m) / v."""
  x, m, c = jnp.array([0.3, -0.7]), jnp.array([1.0, 0.2]), 0.5
  v = A**2 * c**2 + S**2
  expected = np.log(v / S**2) + S**2 / v - 1 + A**2 * float(jnp.sum((x - m) ** 2)) / (2 * v)
  law = laws.gaussian(m, c)
  np.testing.assert_allclose(kl_divergence.kl(law, x, A, S, 24), expected, rtol=1e-5)
  np.testing.assert_allclose(kl_divergence.expected_residual(law, x, A, S, 24), S * A * (x - m) / v, rtol=1e-4)


def test_divergence_of_a_mixture_by_another_quadrature():
  weights, means, stds = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.4, 1.5]), np.array([0.15, 0.3, 0.1])
  law = laws.Mixture(*(jnp.asarray(v, jnp.float32) for v in (weights, means[:, None], stds)))

  def integrand(z, x):
    v = A**2 * stds**2 + S**2
    p = np.sum(weights * np.exp(-0.5 * (z - A * means) ** 2 / v) / np.sqrt(2 * np.pi * v))
    q = np.exp(-0.5 * ((z - A * x) / S) ** 2) / (S * np.sqrt(2 * np.pi))
    return q * (np.log(q) - np.log(p))

  exact = lambda x: scipy.integrate.quad(integrand, A * x - 9 * S, A * x + 9 * S, args=(x,), epsabs=1e-11)[0]  # noqa: E731
  np.testing.assert_allclose(kl_divergence.kl(law, jnp.array([-0.4]), A, S), exact(-0.4), rtol=1e-4)
  slope = (exact(-0.4 + 1e-4) - exact(-0.4 - 1e-4)) / 2e-4
  np.testing.assert_allclose(kl_divergence.expected_residual(law, jnp.array([-0.4]), A, S), S / A * slope, rtol=1e-3)
  with pytest.raises(ValueError, match=r"x has shape \(3,\); the quadrature supports the shapes \[1\] and \[2\]"):
    kl_divergence.kl(law, jnp.zeros(3), A, S)
