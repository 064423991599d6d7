"""What theory says of estimators when the data are Gaussian: means, variances, and where they come to rest."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided

SWEEP = (5, 60, 150, 250, 350, 450, 600, 750, 900, 990)
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(8)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


def levels(schedule, times):
  """alpha, sigma [T] in float64."""
  alpha = np.asarray(schedule.alpha, np.float64)[np.asarray(times)]
  return alpha, np.sqrt(1 - alpha**2)


@functools.partial(jax.jit, static_argnames=("name", "denoise_fn"))
def at_nodes(name, denoise_fn, schedule, x, cond):
  """Residuals [T, 8, D] of one x [D] at the nodes of a quadrature over eps, the same for all coordinates."""
  count = len(SWEEP) * len(NODES)
  eps = jnp.tile(jnp.asarray(NODES, jnp.float32)[:, None], (len(SWEEP), x.size))
  wide = lambda leaf: jnp.broadcast_to(leaf[None], (count, x.size))  # noqa: E731
  residual, _ = ESTIMATORS[name](denoise_fn, None, schedule, wide(x), jnp.repeat(jnp.array(SWEEP), len(NODES)), eps,
                                 jax.tree.map(wide, cond), None)
  return residual.reshape(len(SWEEP), len(NODES), x.size)


def mean_at(name, denoise_fn, schedule, x, cond):
  """E over eps [T, D], exact for a network that is linear in z."""
  residual = at_nodes(name, denoise_fn, schedule, jnp.asarray(x, jnp.float32), cond)
  return np.einsum("n,tnd->td", NODE_WEIGHTS, np.asarray(residual, np.float64))


def law(mean, std):
  """The condition of a Gaussian [D] for the `exact` network."""
  mean = jnp.asarray(mean, jnp.float32)
  return dict(mean=mean, std=jnp.full(mean.shape, std, jnp.float32))


@pytest.mark.parametrize("std", [0.2, 0.6, 1.5])
def test_means_and_variances_of_sds_with_and_without_the_noise(schedule, exact, std):
  """Both have the mean sigma alpha (x - m) / v; the variances are (sigma^2 / v - 1)^2 and (sigma^2 / v)^2."""
  alpha, sigma = levels(schedule, SWEEP)
  v = alpha**2 * std**2 + sigma**2
  variance = {}
  for name, closed in (("sds", (sigma**2 / v - 1) ** 2), ("score", (sigma**2 / v) ** 2)):
    residual = at_nodes(name, exact.gaussian, schedule, jnp.array([1.1]), law([0.3], std))
    residual = np.asarray(residual, np.float64)[..., 0]
    mean = residual @ NODE_WEIGHTS
    np.testing.assert_allclose(mean, sigma * alpha * 0.8 / v, rtol=1e-3, atol=1e-6)
    variance[name] = (residual - mean[:, None]) ** 2 @ NODE_WEIGHTS
    np.testing.assert_allclose(variance[name], closed, rtol=2e-3, atol=1e-6)
  helps = sigma**2 > alpha**2 * std**2
  np.testing.assert_array_equal(variance["sds"] < variance["score"], helps)
  assert 0 < helps.sum() < len(SWEEP)


def test_of_a_point_the_noise_takes_all_variance_away(schedule, exact):
  residual = at_nodes("sds", exact.gaussian, schedule, jnp.array([1.1]), law([0.3], 0.0))
  assert np.asarray(residual)[..., 0].std(1).max() < 2e-4 * np.abs(residual).max()


@pytest.mark.parametrize("name", ["sds", "score"])
@pytest.mark.parametrize("t", [60, 400, 900])
def test_variance_of_what_score_distillation_draws(schedule, exact, name, t):
  """The same through the public function with its own noise, by Monte Carlo; w = 1."""
  count, std = 100_000, 0.6
  ones = jnp.ones((count, 1))
  cond = dict(mean=0.3 * ones, std=std * ones)

  def loss_fn(x):
    return score_distillation(exact.gaussian, None, schedule, x, jax.random.key(t), cond, t=jnp.full(count, t),
                              weighting="uniform", estimator=name)[0]

  found = count * np.asarray(jax.jit(jax.grad(loss_fn))(1.1 * ones), np.float64)[:, 0]
  alpha, sigma = (float(v[0]) for v in levels(schedule, [t]))
  v = alpha**2 * std**2 + sigma**2
  deviation = abs(sigma**2 / v - (name == "sds"))
  assert abs(found.mean() - sigma * alpha * 0.8 / v) < 4 * deviation / np.sqrt(count)
  assert abs(found.var() / deviation**2 - 1) < 4 * np.sqrt(2 / count)


M_C, M_U = np.array([1.0, -0.5]), np.array([0.0, 0.4])


def sides(std_c, std_u):
  return dict(cond=law(M_C, std_c), uncond=law(M_U, std_u))


def rest(name, denoise, schedule, cond):
  """(fixed point [D], slope [D]) of the sum of the expected residual over the sweep, which is linear in x."""
  at = [mean_at(name, denoise, schedule, np.full(2, x), cond).sum(0) for x in (0.0, 1.0)]
  return at[0] / (at[0] - at[1]), at[1] - at[0]


@pytest.mark.parametrize("omega", [0.0, 1.0, 7.5, 30.0])
@pytest.mark.parametrize("name", ["sds", "score", "sjc", "rfds"])
def test_guidance_moves_the_fixed_point_beyond_the_data(schedule, exact, name, omega):
  """m_c + omega (m_c - m_u) for equal spreads, whatever the weight of each t; and it attracts."""
  denoise = guided(exact.gaussian, "dreamfusion", omega)
  point, slope = rest(name, denoise, schedule, sides(0.5, 0.5))
  np.testing.assert_allclose(point, M_C + omega * (M_C - M_U), rtol=1e-3, atol=1e-3)
  assert (slope > 0).all()


@pytest.mark.parametrize("name", ["sds", "rfds"])
def test_descent_comes_to_rest_there(schedule, exact, name):
  """Steps along the expected residual from far off."""
  denoise, cond = guided(exact.gaussian, "diffusers", 4.0), sides(0.5, 0.5)
  weights = jnp.asarray(NODE_WEIGHTS, jnp.float32)

  def step(x, _):
    mean = jnp.einsum("n,tnd->d", weights, at_nodes(name, denoise, schedule, x, cond)) / len(SWEEP)
    return x - 0.3 * mean, None

  end, _ = jax.jit(lambda x: jax.lax.scan(step, x, None, length=100))(jnp.array([-20.0, 20.0]))
  np.testing.assert_allclose(end, M_C + 3 * (M_C - M_U), rtol=1e-3)


def test_csd_of_equal_spreads_drifts_for_ever(schedule, exact):
  """eps_c - eps_u = sigma alpha (m_u - m_c) / v: the same at every x and eps, so nothing stops it."""
  denoise = guided(exact.gaussian, "dreamfusion", 7.5)
  alpha, sigma = levels(schedule, SWEEP)
  drift = (sigma * alpha / (alpha**2 * 0.25 + sigma**2))[:, None, None] * (M_U - M_C)[None, None]
  for x in ([0.0, 0.0], [5.0, -3.0], [-30.0, 40.0]):
    residual = at_nodes("csd", denoise, schedule, jnp.array(x), sides(0.5, 0.5))
    np.testing.assert_allclose(residual, np.broadcast_to(drift, residual.shape), rtol=1e-3, atol=2e-5)
  assert np.abs(drift).min() > 1e-3


@pytest.mark.parametrize("std_c, std_u", [(0.3, 0.9), (0.9, 0.3)])
def test_csd_of_unequal_spreads_has_a_fixed_point(schedule, exact, std_c, std_u):
  """The zero of sum_t sigma alpha [(x - m_c) / v_c - (x - m_u) / v_u]; it attracts only where the null law is wider."""
  alpha, sigma = levels(schedule, SWEEP)
  gain_c, gain_u = (np.sum(sigma * alpha / (alpha**2 * std**2 + sigma**2)) for std in (std_c, std_u))
  point, slope = rest("csd", guided(exact.gaussian, "dreamfusion", 7.5), schedule, sides(std_c, std_u))
  np.testing.assert_allclose(point, (gain_c * M_C - gain_u * M_U) / (gain_c - gain_u), rtol=1e-3, atol=1e-3)
  assert ((slope > 0) == (std_u > std_c)).all()
  at_one_t = mean_at("csd", guided(exact.gaussian, "diffusers", 2.0), schedule,
                     _balance(*(alpha[4:5] ** 2 * s**2 + sigma[4:5] ** 2 for s in (std_c, std_u))),
                     sides(std_c, std_u))[4]
  np.testing.assert_allclose(at_one_t, 0, atol=2e-5)


def _balance(v_c, v_u):
  """(v_u m_c - v_c m_u) / (v_u - v_c), where CSD rests at a single t."""
  return (v_u * M_C - v_c * M_U) / (v_u - v_c)


COVARIANCE = np.array([[1.0, 0.5, 0.0, 0.2], [0.5, 0.8, 0.1, 0.0], [0.0, 0.1, 0.3, 0.0], [0.2, 0.0, 0.0, 0.5]])
TARGET = np.array([1.0, -0.5, 2.0, 0.3])
FLIP = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
"""theta -> (theta reversed, theta)."""
GENERATORS = {"tall": np.array([[1.0, 0.2], [-0.3, 1.0], [0.5, 0.5], [2.0, -1.0]]), "flip": FLIP,
              "square": np.eye(4) + 0.3 * np.tri(4)}


def linear_gradient(schedule, matrix, covariance):
  """theta -> the mean over eps of score distillation's gradient through x = A theta, data N(TARGET, covariance).

  Antithetic pairs cancel all noise, since the exact network is linear.
  """
  alpha, sigma = levels(schedule, SWEEP)
  spread = alpha[:, None, None] ** 2 * covariance + sigma[:, None, None] ** 2 * np.eye(4)
  table = np.zeros((1000, 4, 4), np.float32)
  table[list(SWEEP)] = sigma[:, None, None] * np.linalg.inv(spread)
  table, target = jnp.asarray(table), jnp.asarray(TARGET, jnp.float32)
  generator, t = jnp.asarray(matrix, jnp.float32), jnp.repeat(jnp.array(SWEEP), 2)

  def denoise(params, z, t, cond):
    return jnp.einsum("bij,bj->bi", table[t], z - schedule.alpha[t][:, None] * target[None])

  def loss_fn(theta):
    x = jnp.broadcast_to((generator @ theta)[None], (t.size, 4))
    return score_distillation(denoise, None, schedule, x, jax.random.key(0), None, t=t, antithetic=True)[0]

  return jax.grad(loss_fn)


def normal_equations(schedule, matrix, covariance):
  """(H, b) of sum_t w sigma alpha A^T (alpha^2 S + sigma^2 I)^-1 (A theta - m) / T = H theta - b with w = sigma^2."""
  terms = []
  for alpha, sigma in zip(*levels(schedule, SWEEP)):
    terms.append(sigma**3 * alpha * matrix.T @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(4)))
  pull = np.mean(terms, axis=0)
  return pull @ matrix, pull @ TARGET


@pytest.mark.parametrize("name", GENERATORS)
def test_optimum_of_a_linear_generator(schedule, name):
  """It solves the normal equations of all noise levels together, and descent ends there."""
  matrix = GENERATORS[name]
  size = matrix.shape[1]
  gradient = linear_gradient(schedule, matrix, COVARIANCE)
  hessian, pull = normal_equations(schedule, matrix, COVARIANCE)
  found = jax.jit(jax.vmap(gradient))(jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size)]))
  np.testing.assert_allclose(found[0], -pull, atol=1e-5)
  np.testing.assert_allclose(np.asarray(found[1:] - found[:1]).T, hessian, atol=2e-5)
  rate = 1.0 / np.linalg.norm(hessian, 2)
  step = lambda theta, _: (theta - jnp.float32(rate) * gradient(theta), None)  # noqa: E731
  end, _ = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(size), None, length=400))()
  np.testing.assert_allclose(end, np.linalg.solve(hessian, pull), atol=2e-3)


def test_optimum_of_a_mirrored_image_is_the_mean_of_its_halves(schedule):
  """With equal spreads it is the projection: each number is the mean of the data's two that it stands for."""
  gradient = jax.jit(linear_gradient(schedule, FLIP, 0.36 * np.eye(4)))
  optimum = (TARGET[2:] + TARGET[1::-1]) / 2
  np.testing.assert_allclose(gradient(jnp.asarray(optimum, jnp.float32)), 0, atol=1e-5)
  np.testing.assert_allclose(optimum, np.linalg.lstsq(FLIP, TARGET, rcond=None)[0], atol=1e-12)
  assert np.abs(gradient(jnp.asarray(optimum + 0.1, jnp.float32))).min() > 1e-3


def test_particles_under_sds_collapse(schedule, exact):
  """Each step shrinks their spread by 1 - rate w sigma alpha / v, to nothing, though the data have a spread of 0.6."""
  std, rate, mean, steps = 0.6, 0.5, 0.3, 300
  times = np.random.default_rng(0).integers(20, 980, steps)
  start = np.random.default_rng(1).normal(size=64) * 2 - 1
  cond = dict(mean=jnp.full((128, 1), mean), std=jnp.full((128, 1), std))

  def step(x, inputs):
    key, t = inputs
    loss = lambda x: score_distillation(exact.gaussian, None, schedule, jnp.repeat(x, 2)[:, None], key, cond,  # noqa: E731
                                        t=jnp.full(128, t), antithetic=True, scale=64.0)[0]
    x = x - rate * jax.grad(loss)(x)
    return x, x

  keys = jax.random.split(jax.random.key(0), steps)
  _, path = jax.jit(lambda x: jax.lax.scan(step, x, (keys, jnp.asarray(times, jnp.int32))))(
    jnp.asarray(start, jnp.float32))
  alpha, sigma = levels(schedule, times)
  left = np.cumprod(1 - rate * sigma**3 * alpha / (alpha**2 * std**2 + sigma**2))
  for i in (0, 9, 49):
    np.testing.assert_allclose(path[i], mean + left[i] * (start - mean), atol=2e-4)
  assert np.std(path[-1]) < 1e-3 and abs(np.mean(path[-1]) - mean) < 1e-3 and left[49] > 1e-4
