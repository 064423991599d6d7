import math

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.schedules import flow_schedule
from sds_jax.diffusion.weightings import WEIGHTINGS

TIMES = np.array([0, 20, 300, 600, 999])


def normal_density(x):
  return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def logit_normal(alpha, sigma):
  """Differentiates the normal distribution function of logit(tau) with respect to tau by a central difference."""
  tau = sigma / (alpha + sigma)
  below = lambda p: 0.5 * (1 + math.erf(math.log(p / (1 - p)) / math.sqrt(2)))  # noqa: E731
  h = 1e-6
  return (below(tau + h) - below(tau - h)) / (2 * h)


FORMULAS = {
  "uniform": lambda a, s, t: 1.0,
  "sigma2": lambda a, s, t: 1 - a**2,
  "alpha_sigma2": lambda a, s, t: a * (1 - a**2),
  "sigma_over_alpha": lambda a, s, t: math.sqrt(1 / a**2 - 1),
  "min_snr": lambda a, s, t: 1.0 if a**2 < 5 * s**2 else 5 * s**2 / a**2,
  "logit_normal": lambda a, s, t: logit_normal(a, s),
  "dreamtime": lambda a, s, t: (normal_density((t - 800) / 300) if t > 800 else normal_density((500 - t) / 100)
                                if t < 500 else normal_density(0)) / normal_density(0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(schedule, name):
  """Compares single times with Python floats from independent betas."""
  alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
  actual = WEIGHTINGS[name](schedule, jnp.asarray(TIMES))
  assert actual.shape == TIMES.shape and actual.dtype == jnp.float32
  expected = [FORMULAS[name](math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t]), t) for t in TIMES]
  np.testing.assert_allclose(actual, expected, rtol=3e-5, atol=1e-7)


def test_every_weighting_has_a_test():
  assert sorted(WEIGHTINGS) == sorted(FORMULAS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_pure_noise_has_a_finite_weight(name):
  """Checks the last time of a straight path, alpha = 0."""
  schedule = flow_schedule(100)
  assert np.all(np.isfinite(WEIGHTINGS[name](schedule, jnp.arange(100))))


def test_logit_normal_is_a_density_over_the_path():
  """Checks a mean of 1 over the times of a straight path, and half of the mass below 1/2."""
  weights = np.asarray(WEIGHTINGS["logit_normal"](flow_schedule(2000), jnp.arange(2000)), np.float64)
  assert abs(weights.mean() - 1) < 2e-3
  assert abs(weights[:1000].mean() / 2 - 0.5) < 2e-3
