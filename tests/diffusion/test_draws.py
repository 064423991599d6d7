"""Further draws of an estimator are independent of t and eps."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.schedules import flow_schedule

COUNT = 4000
CASES = {
  # With a network returning t, the residual of ASD is t - u and the residual of CDS is u - t. With a network returning
  # 0, SDI's inversion is linear: its noise, less that of an inversion without draws (eta = 0), is made of the draws.
  "asd": (dict(shift=1.0, t_min=0.0), (0.3, 0.5), lambda residual, t, eps: -residual[:, :1] / t),
  "cds": (dict(gap=0.0, spread=0.4), (0.3, 0.5), lambda residual, t, eps: residual[:, :1]),
  "sdi": (dict(eta=1.0, steps=2), (0.05, 0.1), lambda residual, t, eps: eps),
}
"""Estimator -> options, range of t, and a function (residual, t, eps) -> the further draws."""


@pytest.mark.parametrize("name", CASES)
def test_further_draws_are_independent_of_t_and_the_noise(name):
  """Checks correlations within 5 standard errors, 5 / sqrt(4000) = 0.08; a reused key gives 0.9 or more."""
  options, t_range, further_draws = CASES[name]

  def denoise(params, z, t, cond):
    return jnp.zeros_like(z) if name == "sdi" else jnp.broadcast_to(t.astype(jnp.float32)[:, None], z.shape)

  @jax.jit
  def draw(x):
    def loss(x, **estimator):
      return score_distillation(denoise, None, flow_schedule(1000), x, jax.random.key(0), None, t_range=t_range,
                                weighting="uniform", **estimator)

    grads, aux = jax.grad(lambda x: loss(x, estimator=name, options=options), has_aux=True)(x)
    quiet = loss(x, estimator=name, options=options | dict(eta=0.0))[1].eps if name == "sdi" else 0.0
    return COUNT * grads, aux.eps - quiet, loss(x)[1]  # SDS under the same key has its t and its noise

  residual, eps, plain = jax.tree.map(lambda a: np.asarray(a, np.float64), draw(jnp.zeros((COUNT, 2))))
  drawn = further_draws(residual, plain.t[:, None], eps)
  correlation = np.corrcoef(np.concatenate([drawn, plain.eps, plain.t[:, None]], axis=1).T)
  assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(COUNT)
  assert drawn.std() > 0.005  # SDI draws little where the path begins
