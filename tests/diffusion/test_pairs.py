"""One prediction against another: DDS, PDS and asynchronous distillation, recomputed in numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided

B = 5
T = jnp.array([50, 200, 500, 800, 950])
KEYS = jax.random.split(jax.random.key(2), B)
rng = np.random.default_rng(0)
X, SOURCE, EPS = (jnp.asarray(rng.normal(size=(B, 6)), jnp.float32) for _ in range(3))
COND, SOURCE_COND, NULL = (jnp.asarray(rng.normal(size=(B, 3)), jnp.float32) for _ in range(3))


def sides(cond):
  return dict(cond=cond, uncond=NULL)


@pytest.fixture(scope="module")
def run(schedule, network):
  """(estimator, **options) -> residual [B, 6] of the small network, guided."""
  denoise, params = network
  denoise = guided(denoise, "diffusers", 4.0)
  return lambda name, x=X, **options: np.asarray(jax.jit(lambda x: ESTIMATORS[name](
    denoise, params, schedule, x, T, EPS, sides(COND), KEYS, **options)[0])(x))


def predict(schedule, network, x, t, cond, scale=4.0):
  """eps_hat [B, 6] in numpy's hands: the network's two sides, mixed."""
  denoise, params = network
  alpha, sigma = (np.asarray(a)[np.asarray(t)][:, None] for a in (schedule.alpha, schedule.sigma))
  z = jnp.asarray(alpha * np.asarray(x) + sigma * np.asarray(EPS), jnp.float32)
  c, u = (np.asarray(denoise(params, z, t, side), np.float64) for side in (cond, NULL))
  return u + scale * (c - u)


def test_dds_is_a_difference_under_one_noise(schedule, network, run):
  found = run("dds", source_x=SOURCE, source_cond=sides(SOURCE_COND))
  expected = predict(schedule, network, X, T, COND) - predict(schedule, network, SOURCE, T, SOURCE_COND)
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["dds", "pds"])
def test_nothing_moves_a_source_under_its_own_words(run, name):
  np.testing.assert_allclose(run(name, x=X, source_x=X, source_cond=sides(COND)), 0.0, atol=1e-4)
  assert np.abs(run(name, x=X, source_x=X, source_cond=sides(SOURCE_COND))).max() > 1e-2


def test_dds_is_sds_where_the_source_is_answered_by_its_noise(schedule, exact):
  """A source law that is a point at the source: its exact prediction is eps."""
  law = dict(mean=0.5 * jnp.ones((B, 6)), std=0.3 * jnp.ones((B, 6)))
  point = dict(mean=SOURCE, std=jnp.zeros((B, 6)))
  args = (exact.gaussian, None, schedule, X, T, EPS, law, KEYS)
  dds, _ = ESTIMATORS["dds"](*args, source_x=SOURCE, source_cond=point)
  np.testing.assert_allclose(dds, ESTIMATORS["sds"](*args)[0], atol=1e-4)


def single_step(schedule, stride):
  """(psi, chi) [B] float64: PDS = psi (x - x_source) + chi (eps_hat - eps_hat_source)."""
  bar = np.asarray(schedule.alpha, np.float64) ** 2
  t = np.asarray(T)
  now, before, one = bar[t], bar[t - stride], bar[t] / bar[t - 1]
  beta = 1 - one
  deviation = np.sqrt((1 - before) / (1 - now) * beta)
  of_x0, of_z = np.sqrt(before) * beta / (1 - now), np.sqrt(one) * (1 - before) / (1 - now)
  # x0_hat = x + sigma / alpha (eps - eps_hat), z = alpha x + sigma eps, z_prev = alpha_prev x + ...
  psi = (np.sqrt(before) - of_x0 - of_z * np.sqrt(now)) / deviation
  chi = of_x0 * np.sqrt(1 - now) / np.sqrt(now) / deviation
  return psi, chi


def test_pds_with_single_steps_is_dds_times_chi(schedule, run):
  source = dict(source_x=SOURCE, source_cond=sides(SOURCE_COND))
  psi, chi = single_step(schedule, 1)
  assert np.abs(psi).max() < 1e-3 and 0.05 < chi.min() < chi.max() < 0.2
  np.testing.assert_allclose(run("pds", stride=1, **source), chi[:, None] * run("dds", **source), atol=5e-3)


def test_pds_with_the_public_stride_pulls_to_the_source(schedule, run):
  source = dict(source_x=SOURCE, source_cond=sides(SOURCE_COND))
  psi, chi = single_step(schedule, 2)
  np.testing.assert_allclose(psi[:4], [0.66, 0.14, 0.032, 0.0097], rtol=0.05)
  expected = psi[:, None] * np.asarray(X - SOURCE) + chi[:, None] * run("dds", **source)
  np.testing.assert_allclose(run("pds", **source), expected, atol=5e-3)


def test_asd_asks_a_little_later_without_guidance(schedule, network, run):
  found = run("asd", shift=0.5, t_min=0.02)
  u = [min(int(t) + int(np.floor(np.float32(jax.random.uniform(k)) * np.float32(0.5 * (int(t) - 20)))), 999)
       for t, k in zip(T, KEYS)]
  assert sum(a > int(b) for a, b in zip(u, T)) >= 3
  expected = predict(schedule, network, X, T, COND) - predict(schedule, network, X, jnp.array(u), COND, scale=1.0)
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_asd_without_a_shift_is_csd_times_omega(run):
  """eps_guided - eps_c = omega (eps_c - eps_u); a diffusers scale of 4 is omega = 3."""
  np.testing.assert_allclose(run("asd", shift=0.0), 3 * run("csd"), atol=2e-4)
