import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.weightings import WEIGHTINGS


@pytest.mark.parametrize("name, formula", [
  ("uniform", lambda a, s: np.ones_like(a)),
  ("sigma2", lambda a, s: 1 - a**2),
  ("alpha_sigma2", lambda a, s: a * (1 - a**2)),
  ("sigma_over_alpha", lambda a, s: np.sqrt(1 / a**2 - 1)),
])
def test_formula(schedule, name, formula):
  t = jnp.array([0, 20, 300, 999])
  alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
  alpha = np.sqrt(alpha_bar)[np.asarray(t)]
  found = WEIGHTINGS[name](schedule, t)
  assert found.shape == (4,) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, formula(alpha, np.sqrt(1 - alpha**2)), rtol=1e-5)


def test_every_weighting_has_a_test():
  assert sorted(WEIGHTINGS) == ["alpha_sigma2", "sigma2", "sigma_over_alpha", "uniform"]
