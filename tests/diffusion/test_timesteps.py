import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import weightings
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.timesteps import (SAMPLERS, annealed_range, antithetic, dreamtime, stratified, to_index,
                                         uniform)


def test_fraction_to_index():
  fractions = jnp.array([0.0, 0.02, 0.5, 0.9999, 1.0, 1.5, -1.0])
  np.testing.assert_array_equal(to_index(fractions, 1000), [0, 20, 500, 999, 999, 999, 0])
  assert to_index(fractions, 10).dtype == jnp.int32


@pytest.mark.parametrize("name", SAMPLERS)
def test_uniform_marginal_within_the_range(name):
  """Checks the uniform t of a fixed example over many keys by chi-square over 8 bins."""
  sample = SAMPLERS[name]
  draw = lambda key: sample(key, jnp.array([2]), (0.2, 0.6), 1000, 4)[0]  # noqa: E731
  t = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 8000)))
  assert t.min() >= 200 and t.max() <= 600 and t.min() < 210 and t.max() > 590
  counts, _ = np.histogram(t, bins=8, range=(200, 600))
  assert np.sum((counts - 1000) ** 2 / 1000) < 24.3  # 0.1 % of chi-square with 7 degrees of freedom


def test_stratified_has_one_in_each_stratum():
  for seed in range(20):
    t = np.sort(np.asarray(stratified(jax.random.key(seed), jnp.arange(8), (0.0, 1.0), 8000, 8)))
    gaps = np.diff(np.append(t, t[0] + 8000))
    assert np.all(np.abs(gaps - 1000) <= 1)
  shifts = {int(stratified(jax.random.key(s), jnp.arange(8), (0.0, 1.0), 8000, 8)[0]) for s in range(20)}
  assert len(shifts) == 20


def test_uniform_draws_are_independent_across_examples():
  t = np.asarray(uniform(jax.random.key(0), jnp.arange(4000), (0.0, 1.0), 1000), np.float64)
  assert abs(np.corrcoef(t[:-1], t[1:])[0, 1]) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("name", SAMPLERS)
def test_layout_over_devices_does_not_matter(name):
  sample = SAMPLERS[name]
  key = jax.random.key(3)
  whole = sample(key, jnp.arange(16), (0.02, 0.98), 1000, 16)
  parts = jax.pmap(lambda index: sample(key, index, (0.02, 0.98), 1000, 16))(jnp.arange(16).reshape(8, 2))
  np.testing.assert_array_equal(whole, np.asarray(parts).reshape(-1))
  assert len(np.unique(whole)) > 8


def test_schedule_value():
  knots = ((0.2, 1.0), (0.6, 3.0), (1.0, 0.0))
  progress = jnp.array([0.0, 0.2, 0.4, 0.6, 0.9, 1.0])
  np.testing.assert_allclose(jax.jit(lambda p: schedule_value(knots, p))(progress), [1, 1, 2, 3, 0.75, 0], atol=1e-6)
  np.testing.assert_array_equal(schedule_value(7, progress), [7.0] * 6)
  assert schedule_value(7, 0.5).dtype == jnp.float32 and schedule_value(knots, 0.5).shape == ()
  np.testing.assert_array_equal(schedule_value([[0.0, 4.0]], progress), [4.0] * 6)


@pytest.mark.parametrize("spec", [
  "fast", (), None, float("nan"), (1.0, 2.0), ((0.0, 1.0, 2.0),), ((0.0, 1.0), (0.5,)), ((0.0, 1.0), (0.0, 2.0)),
  ((0.5, 1.0), (0.1, 2.0)), ((0.0, 1.0), (2.0, 1.0))])
def test_malformed_scalars(spec):
  with pytest.raises(ValueError, match="legal: a number, or"):
    schedule_value(spec, 0.5)


def test_annealed_range():
  t_max = ((0.0, 0.98), (1.0, 0.5))
  low, high = jax.jit(lambda p: annealed_range(0.02, t_max, p))(0.25)
  np.testing.assert_allclose([low, high], [0.02, 0.98 - 0.48 * 0.25], atol=1e-6)
  low, high = annealed_range(0.02, t_max, 0.25, "sqrt")
  np.testing.assert_allclose([low, high], [0.02, 0.98 - 0.48 * 0.5], atol=1e-6)
  with pytest.raises(ValueError, match="'cubic'.*linear, sqrt"):
    annealed_range(0.02, t_max, 0.25, "cubic")
  fixed = annealed_range(t_max, t_max, 0.5)
  np.testing.assert_array_equal(uniform(jax.random.key(0), jnp.arange(5), fixed, 1000), [740] * 5)


def test_antithetic_pairs_mirror_each_other():
  """Checks the sum of partners, independence of pairs, and other times for other keys."""
  t = np.asarray(antithetic(jax.random.key(0), jnp.arange(4000), (0.2, 0.6), 100_000), np.float64).reshape(-1, 2)
  assert np.abs(t.sum(1) - 80_000).max() <= 2
  assert np.corrcoef(t.T)[0, 1] < -0.9999
  assert abs(np.corrcoef(t[:-1, 0], t[1:, 0])[0, 1]) < 4 / np.sqrt(2000)
  other = np.asarray(antithetic(jax.random.key(1), jnp.arange(4000), (0.2, 0.6), 100_000)).reshape(-1, 2)
  assert np.mean(t == other) < 0.01


def test_antithetic_halves_an_odd_batch_and_lowers_variance():
  """Checks a constant mean of an even batch, and an odd batch without the last partner."""
  means = [np.asarray(antithetic(jax.random.key(s), jnp.arange(6), (0.0, 1.0), 1000)).mean() for s in range(5)]
  assert np.ptp(means) <= 1
  whole = antithetic(jax.random.key(3), jnp.arange(6), (0.0, 1.0), 1000)
  np.testing.assert_array_equal(antithetic(jax.random.key(3), jnp.arange(5), (0.0, 1.0), 1000), whole[:5])


def slow_dreamtime(all_progress, m1, m2, s1, s2):
  """Computes argmin over t of |sum of normalised W from t to the end - progress| by a loop over 1,000 times."""
  def weight(t):
    return np.exp(-((t - m1) ** 2) / (2 * s1**2)) if t > m1 else np.exp(-((t - m2) ** 2) / (2 * s2**2)) if t < m2 else 1
  weights = [weight(t / 1000) for t in range(1000)]
  passed = np.array([sum(weights[t:]) / sum(weights) for t in range(1000)])
  return np.array([np.argmin(np.abs(passed - progress)) for progress in all_progress])


@pytest.mark.parametrize("shape", [(0.8, 0.5, 0.3, 0.1), (0.7, 0.3, 0.1, 0.2)])
def test_dreamtime_against_a_loop(schedule, shape):
  progress = np.linspace(0.0, 1.0, 21)
  actual = jax.jit(lambda p: dreamtime(schedule, p, *shape))(jnp.asarray(progress, jnp.float32))
  assert actual.shape == (21,) and actual.dtype == jnp.float32
  expected = slow_dreamtime(progress, *shape)
  inside = slice(1, 20)  # at the ends many times have almost no weight, so the argmin is ambiguous
  assert np.abs(np.asarray(actual)[inside] * 1000 - expected[inside]).max() <= 1.01
  assert np.all(np.diff(actual) < 0) and actual[0] == pytest.approx(0.999) and actual[-1] < 0.3
  assert dreamtime(schedule, 0.5, *shape).shape == ()


def test_dreamtime_visits_times_in_proportion_to_the_weight(schedule):
  """Compares a histogram of t over the run with sums of W."""
  t = np.asarray(dreamtime(schedule, jnp.linspace(0.0, 1.0, 4000)), np.float64)
  counts, edges = np.histogram(t, bins=10, range=(0.0, 1.0))
  weight = np.asarray(weightings.dreamtime(schedule, jnp.arange(1000)), np.float64).reshape(10, 100).sum(1)
  np.testing.assert_allclose(counts / 4000, weight / weight.sum(), atol=0.003)
