"""Walks along the model's own path: DDIM's steps, and ISM, SDI and consistent distillation against loops in numpy."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.paths import ddim_step, invert

X = jnp.array([[0.4, -1.0], [0.9, 0.2], [-0.3, 0.6]])
T = jnp.array([300, 520, 905])
EPS = jax.random.normal(jax.random.key(0), X.shape)
KEYS = jax.random.split(jax.random.key(9), 3)


class Numpy:
  """The same schedule and the exact denoiser of N(m, c^2) in float64, m and c one for each side of a condition."""

  def __init__(self, schedule):
    self.alpha, self.sigma = (np.asarray(a, np.float64) for a in (schedule.alpha, schedule.sigma))

  def eps(self, z, t, mean, std=0.5):
    a, s = self.alpha[t], self.sigma[t]
    return s * (z - a * mean) / (a**2 * std**2 + s**2)

  def step(self, z, eps, t, t_next):
    x0 = (z - self.sigma[t] * eps) / self.alpha[t]
    return self.alpha[t_next] * x0 + self.sigma[t_next] * eps

  def noisy(self, x, eps, t):
    return self.alpha[t] * x + self.sigma[t] * eps


@pytest.fixture(scope="module")
def slow(schedule):
  return Numpy(schedule)


@pytest.fixture(scope="module")
def denoise(exact):
  """Guided at omega = 2 between means 1 (the condition) and -0.5 (none)."""
  return guided(exact.gaussian, "dreamfusion", 2.0)


def side(mean):
  return dict(mean=jnp.full(X.shape, mean), std=jnp.full(X.shape, 0.5))


COND = dict(cond=side(1.0), uncond=side(-0.5))


def guided_eps(slow, z, t, omega):
  c, u = slow.eps(z, t, 1.0), slow.eps(z, t, -0.5)
  return c + omega * (c - u)


def estimate(schedule, denoise, name, **options):
  residual, seen = jax.jit(lambda x, t, eps, keys: ESTIMATORS[name](
    denoise, None, schedule, x, t, eps, COND, keys, **options))(X, T, EPS, KEYS)
  return np.asarray(residual), seen


def test_a_step_and_back(schedule):
  z, eps, t, later = X, EPS, jnp.array([10, 400, 800]), jnp.array([300, 400, 990])
  up = ddim_step(schedule, z, eps, t, later)
  np.testing.assert_allclose(ddim_step(schedule, up, eps, later, t), z, atol=2e-4)
  np.testing.assert_allclose(up[1], z[1], atol=1e-6)


def test_inversion_follows_the_probability_flow(schedule, exact):
  """For N(m, c^2) the flow keeps (z - alpha m) / sqrt(v), v = alpha^2 c^2 + sigma^2; many small steps come near it."""
  law, mean, std = side(0.7), 0.7, 0.5
  times = jnp.broadcast_to(jnp.arange(0, 901)[:, None], (901, 3))
  z, _ = jax.jit(lambda x: invert(lambda z, t: exact.gaussian(None, z, t, law), schedule, x, times))(X)
  alpha = np.asarray(schedule.alpha, np.float64)[[0, 900]]
  v = alpha**2 * std**2 + 1 - alpha**2
  expected = alpha[1] * mean + (np.asarray(X) - alpha[0] * mean) * np.sqrt(v[1] / v[0])
  np.testing.assert_allclose(z, expected, atol=0.02)


@pytest.mark.parametrize("delta, start", [(0.08, 0.0), (0.35, 0.0), (0.08, 0.15)])
def test_ism_against_a_loop(schedule, slow, denoise, delta, start):
  found, seen = estimate(schedule, denoise, "ism", delta_t=delta, delta_s=0.2, steps=5, start=start)
  for b in range(3):
    t, s = int(T[b]), max(int(T[b]) - round(1000 * delta), int(1000 * start))
    at, z = int(1000 * start), None
    z = slow.noisy(np.asarray(X[b], np.float64), np.asarray(EPS[b]), at)
    while at < s:
      to = min(at + 200, s)
      z, at = slow.step(z, slow.eps(z, at, -0.5), at, to), to
    eps_s = slow.eps(z, s, -0.5)
    z = slow.step(z, eps_s, s, t)
    np.testing.assert_allclose(found[b], guided_eps(slow, z, t, 2.0) - eps_s, atol=3e-4)
    np.testing.assert_allclose(seen["eps_hat"][b], guided_eps(slow, z, t, 2.0), atol=3e-4)


@pytest.mark.parametrize("steps", [10, 2])
def test_sdi_against_a_loop(schedule, slow, denoise, steps):
  """Where the strides do not suffice the last one is longer."""
  found, seen = estimate(schedule, denoise, "sdi", eta=0.0, inversion_scale=-2.0, steps=steps)
  for b in range(3):
    t, at, z = int(T[b]), 0, slow.noisy(np.asarray(X[b], np.float64), np.asarray(EPS[b]), 0)
    for i in range(steps):
      to = t if i == steps - 1 else min(at + 100, t)
      z, at = slow.step(z, guided_eps(slow, z, at, -2.0), at, to), to
    eps_inv = (z - slow.alpha[t] * np.asarray(X[b])) / slow.sigma[t]
    np.testing.assert_allclose(seen["eps"][b], eps_inv, atol=1e-3)
    np.testing.assert_allclose(found[b], guided_eps(slow, z, t, 2.0) - eps_inv, atol=2e-3)


def test_sdi_adds_ddpms_noise_on_the_way(schedule):
  """Under a network that says 0, z is what the kicks leave: a sum of independent normals of known spread."""
  count, t = 4000, 250
  keys, x = jax.random.split(jax.random.key(1), count), jnp.zeros((count, 1))
  silent = lambda params, z, t, cond: jnp.zeros_like(z)  # noqa: E731
  _, seen = jax.jit(lambda: ESTIMATORS["sdi"](silent, None, schedule, x, jnp.full(count, t), x, None, keys, eta=0.5))()
  bar = np.asarray(schedule.alpha, np.float64) ** 2
  variance = 0.0
  for low, high in ((0, 100), (100, 200), (200, 250)):
    kick = 0.25 * (1 - bar[low]) / (1 - bar[high]) * (1 - bar[high] / bar[low])
    variance = variance * bar[high] / bar[low] + kick
  found = float(np.var(np.asarray(seen["eps"]))) * (1 - bar[t])
  assert found == pytest.approx(variance, rel=4 * np.sqrt(2 / count))


@pytest.mark.parametrize("clip", [None, 0.001])
def test_cds_against_a_loop(schedule, slow, denoise, clip):
  found, seen = estimate(schedule, denoise, "cds", gap=0.1, spread=0.2, clip=clip)
  e = np.asarray(jax.random.normal(jax.random.key(0), (2,)))
  for b in range(3):
    t = int(T[b])
    u = min(t + int(np.floor(np.float32(1000) * (0.1 + 0.2 * float(jax.random.uniform(KEYS[b]))))), 999)
    z = slow.noisy(np.asarray(X[b], np.float64), e, u)
    eps_u = guided_eps(slow, z, u, 2.0)
    expected = eps_u - guided_eps(slow, slow.step(z, eps_u, u, t), t, 2.0)
    if clip:
      assert np.abs(expected).max() > clip
      expected = np.clip(expected, -clip, clip)
    np.testing.assert_allclose(found[b], expected, atol=5e-4)
    np.testing.assert_allclose(seen["eps"][b], e, atol=1e-6)


@pytest.mark.parametrize("u", [350, 700])
def test_cds_rests_beside_the_mean_by_its_noise(schedule, slow, exact, u):
  """Under N(m, c^2), where sigma_u e fills up what alpha_u x lacks of alpha_u m; and images beside it go back there."""
  e = np.asarray(jax.random.normal(jax.random.key(5), (2,)), np.float64)
  rest = 0.7 - slow.sigma[u] / slow.alpha[u] * e
  law, t = dict(mean=jnp.full((3, 2), 0.7), std=jnp.full((3, 2), 0.5)), jnp.full(3, u - 100)
  x = jnp.asarray(rest + np.array([[-0.1], [0.0], [0.1]]), jnp.float32)
  found, _ = jax.jit(lambda x, t: ESTIMATORS["cds"](
    exact.gaussian, None, schedule, x, t, EPS, law, KEYS, gap=0.1, spread=0.0, noise_seed=5))(x, t)
  np.testing.assert_allclose(found[1], 0.0, atol=1e-5)
  assert (found[0] < -1e-4).all() and (found[2] > 1e-4).all()


@pytest.mark.parametrize("name", ["asd", "sdi", "cds"])
def test_draws_are_an_examples_own(schedule, denoise, name):
  """Alone or in company, in any order; another key, another draw."""
  @jax.jit
  def estimate(order, keys):
    return ESTIMATORS[name](denoise, None, schedule, X[order], T[order], EPS[order],
                            jax.tree.map(lambda a: a[order], COND), keys[order])[0]

  run = lambda order, keys: np.asarray(estimate(order, keys))  # noqa: E731

  everything, order = jnp.arange(3), jnp.array([2, 0])
  whole = run(everything, KEYS)
  np.testing.assert_allclose(run(order, KEYS), whole[np.asarray(order)], atol=1e-5)
  other = run(everything, jax.random.split(jax.random.key(10), 3))
  assert np.abs(other - whole).max() > 1e-4


@pytest.mark.parametrize("name", ["ism", "sdi"])
def test_the_weight_is_that_of_the_time_at_which_the_network_was_asked(schedule, denoise, name):
  """An inversion does not end below where it begins: t = 100 and 300 count as 400."""
  @functools.partial(jax.jit, static_argnums=0)
  def gradient(weighting):
    return jax.grad(lambda x: score_distillation(
      denoise, None, schedule, x, jax.random.key(0), COND, t=jnp.array([100, 300, 905]), estimator=name,
      options=dict(start=0.4, steps=2), weighting=weighting), has_aux=True)(X)

  plain, aux = gradient("uniform")
  asked = np.array([400, 400, 905])
  np.testing.assert_array_equal(aux.t, asked)
  weighted, _ = gradient(lambda schedule, t: t.astype(jnp.float32))
  np.testing.assert_allclose(weighted, asked[:, None] * np.asarray(plain), rtol=1e-4)
  z = schedule.alpha[asked][:, None] * aux.x0_hat + schedule.sigma[asked][:, None] * aux.eps_hat
  np.testing.assert_allclose(denoise(None, z, asked, COND), aux.eps_hat, rtol=1e-3, atol=1e-3)
