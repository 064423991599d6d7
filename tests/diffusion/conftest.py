"""Exact denoisers for data with noisy marginals, and therefore noise predictions, in closed form."""
import types

import jax
import jax.numpy as jnp
import pytest

from sds_jax.diffusion.schedules import schedule_from_config

SD_CONFIG = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)


@pytest.fixture(scope="session")
def schedule():
  return schedule_from_config(SD_CONFIG)


@pytest.fixture(scope="session")
def exact(schedule):
  """Returns a namespace of exact denoisers for examples [B, D] with independent coordinates."""

  def coefficients(t):
    return schedule.alpha[t][:, None], schedule.sigma[t][:, None]

  def gaussian(params, z, t, cond):
    """Computes eps* = sigma (z - alpha m) / v for data N(m, c^2), v = alpha^2 c^2 + sigma^2; cond = m, c [B, D]."""
    alpha, sigma = coefficients(t)
    mean, std = cond["mean"], cond["std"]
    return sigma * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)

  def mixture(params, z, t, cond):
    """Computes eps* = -sigma d/dz log p_t for a mixture; params = weights, means, stds [K]; z [B, 1]."""
    alpha, sigma = coefficients(t)
    var = alpha**2 * params["stds"][None] ** 2 + sigma**2
    gap = z - alpha * params["means"][None]
    logits = jnp.log(params["weights"])[None] - 0.5 * gap**2 / var - 0.5 * jnp.log(var)
    return sigma * jnp.sum(jax.nn.softmax(logits, axis=-1) * gap / var, axis=-1, keepdims=True)

  return types.SimpleNamespace(gaussian=gaussian, mixture=mixture)


@pytest.fixture(scope="session")
def network():
  """Returns (denoise_fn, params) of a small nonlinear network, not exact, for x [B, 6] and cond [B, 3]."""
  keys = jax.random.split(jax.random.key(7), 3)
  params = dict(z=jax.random.normal(keys[0], (6, 8)), c=jax.random.normal(keys[1], (3, 8)),
                out=jax.random.normal(keys[2], (8, 6)))

  def denoise(params, z, t, cond):
    hidden = jnp.tanh(z @ params["z"] + cond @ params["c"] + (t.astype(jnp.float32) / 1000)[:, None])
    return hidden @ params["out"]

  return denoise, params
