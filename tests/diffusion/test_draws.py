"""What an estimator draws for itself has nothing to do with t and eps."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.schedules import flow_schedule

COUNT = 4000
SHOWN = {
  # Under a network that says t, ASD's residual is t - u and that of CDS u - t; under one that says nothing, SDI's noise
  # is what it drew on the way up.
  "asd": (dict(shift=1.0, t_min=0.0), (0.3, 0.5), lambda residual, t, eps: -residual[:, :1] / t),
  "cds": (dict(gap=0.0, spread=0.4), (0.3, 0.5), lambda residual, t, eps: residual[:, :1]),
  "sdi": (dict(eta=1.0, steps=2), (0.05, 0.1), lambda residual, t, eps: eps),
}
"""Estimator -> its options, the range of t, and how its own draws show."""


@pytest.mark.parametrize("name", SHOWN)
def test_an_estimators_own_draws_are_independent_of_t_and_the_noise(name):
  """No correlation beyond 5 standard errors, 5 / sqrt(4000) = 0.08; a key that is used twice makes it 0.9 and more."""
  options, t_range, shown = SHOWN[name]

  def denoise(params, z, t, cond):
    return jnp.zeros_like(z) if name == "sdi" else jnp.broadcast_to(t.astype(jnp.float32)[:, None], z.shape)

  @jax.jit
  def draw(x):
    def loss(x, **estimator):
      return score_distillation(denoise, None, flow_schedule(1000), x, jax.random.key(0), None, t_range=t_range,
                                weighting="uniform", **estimator)

    grads, aux = jax.grad(lambda x: loss(x, estimator=name, options=options), has_aux=True)(x)
    return COUNT * grads, aux.eps, loss(x)[1]  # SDS under the same key has its t and its noise

  residual, eps, plain = jax.tree.map(lambda a: np.asarray(a, np.float64), draw(jnp.zeros((COUNT, 2))))
  own = shown(residual, plain.t[:, None], eps)
  correlation = np.corrcoef(np.concatenate([own, plain.eps, plain.t[:, None]], axis=1).T)
  assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(COUNT)
  assert own.std() > 0.05
