"""Perfect networks for laws of `testbed.laws`: noise predictors, and velocity predictors of rectified flows.

A perfect network has the signature of a trained network (`types.DenoiseFn`), with a law in place of parameters, and
works in `score_distillation`, in `guided`, and in a training step.

  >>> import jax.numpy as jnp
  >>> from sds_jax import guided, schedule_from_config, score_distillation
  >>> schedule = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
  >>> cats, dogs = laws.gaussian(jnp.zeros(2), 0.1), laws.gaussian(jnp.ones(2), 0.1)
  >>> params = with_null_label(laws.stack([cats, dogs]), jnp.array([0.5, 0.5]))
  >>> denoise = guided(vp_denoiser(schedule), "diffusers", 7.5)
  >>> cond = dict(cond=jnp.array([1]), uncond=jnp.array([2]))       # a dog, and the null label after the last
  >>> x = jnp.zeros((1, 2))
  >>> loss = lambda x: score_distillation(denoise, params, schedule, x, jax.random.key(0), cond)[0]
  >>> print(bool((jax.jit(jax.grad(loss))(x) < 0).all()))           # towards the dogs
  True
"""
from __future__ import annotations

import jax

from sds_jax.diffusion.schedules import at_times
from sds_jax.testbed import laws
from sds_jax.testbed.laws import Mixture
from sds_jax.types import Array, DenoiseFn, Schedule


def with_null_label(label_laws: Mixture, shares: Array) -> Mixture:
  """Adds the null label Y to the laws of Y labels.

  The law of the null label is the law of x over random labels.

  Classifier-free guidance evaluates the network under the null label as well.

  Args:
    label_laws: leaves [Y, ...], result of `laws.stack`.
    shares: [Y], probabilities of the labels, sum 1.

  Returns:
    leaves [Y + 1, ...].

  >>> import jax.numpy as jnp
  >>> from sds_jax.testbed.laws import gaussian, stack
  >>> both = with_null_label(stack([gaussian(jnp.zeros(1), 1.0), gaussian(jnp.ones(1), 1.0)]), jnp.array([0.5, 0.5]))
  >>> print(both.weights)
  [[1.  0. ]
   [1.  0. ]
   [0.5 0.5]]
  """
  # The number of labels is static, from the shape.
  labels = shares.shape[0]
  # `stack` pads the laws of the labels to the number of components of their union.
  each = (jax.tree.map(lambda leaf: leaf[y], label_laws) for y in range(labels))
  return laws.stack([*each, laws.union(label_laws, shares)])


def vp_denoiser(schedule: Schedule) -> DenoiseFn:
  """Returns a perfect noise predictor E[eps | z_t, y].

  z_t = alpha_t x + sigma_t eps.

  Returns:
    (params, z_t [B, ...], t [B] integer, cond) -> eps_hat [B, ...]. `params` are laws of labels (leaves [Y, ...]) and
    `cond` holds a label [B] integer for each example; or `params` is a single law and `cond` is None.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> import jax.numpy as jnp
  >>> from sds_jax.testbed.laws import dataset
  >>> denoise = vp_denoiser(flow_schedule(4))  # sigma = 1/2 at t = 1
  >>> print(denoise(dataset(jnp.zeros((1, 2))), jnp.ones((1, 2)), jnp.array([1]), None))
  [[2. 2.]]
  """
  def denoise(params: Mixture, z: Array, t: Array, cond: Array | None) -> Array:
    return _per_example(laws.expected_noise, params, z, at_times(schedule.alpha, t), at_times(schedule.sigma, t), cond)

  return denoise


def flow_velocity(params: Mixture, z: Array, t: Array, cond: Array | None) -> Array:
  """Computes E[eps - x | z_t, y] for the straight path.

  z_t = (1 - t) x + t eps.

  The velocity of a rectified flow (arXiv:2209.03003).

  Args:
    params, cond: as for the result of `vp_denoiser`.
    z: [B, ...].
    t: [B] float in (0, 1].

  >>> import jax.numpy as jnp
  >>> from sds_jax.testbed.laws import dataset
  >>> print(flow_velocity(dataset(jnp.zeros((1, 2))), jnp.ones((1, 2)), jnp.array([0.5]), None))
  [[2. 2.]]
  """
  def velocity(law: Mixture, z: Array, a: Array, s: Array) -> Array:
    return (z - laws.expected_clean(law, z, a, s)) / s  # eps = (z - (1 - t) x) / t

  return _per_example(velocity, params, z, 1.0 - t, t, cond)


def _per_example(function, params: Mixture, z: Array, a: Array, s: Array, cond: Array | None) -> Array:
  """Calls function(law of the label, z, a, s) for each example."""
  if cond is None:
    return jax.vmap(function, in_axes=(None, 0, 0, 0))(params, z, a, s)
  # The laws are closed over, not mapped: indexing inside vmap selects the law of each example.
  return jax.vmap(lambda z, a, s, y: function(jax.tree.map(lambda leaf: leaf[y], params), z, a, s))(z, a, s, cond)
