"""The exact objective of score distillation: the KL divergence of a noisy image from the noisy data.

DreamFusion (arXiv:2209.14988, eq. 4): E_eps[w(t) (eps_hat - eps)] = (sigma_t / alpha_t) w(t) d/dx KL(N(alpha_t x,
sigma_t^2) || p_t). For images of one or two numbers, quadrature computes the divergence about as exactly as float32
allows. The right-hand side then needs neither noise nor an estimator.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.testbed import laws
from sds_jax.testbed.laws import Mixture
from sds_jax.types import Array


def kl(law: Mixture, x: Array, a: Array | float, s: Array | float, order: int = 64) -> Array:
  """Computes KL(N(a x, s^2 I) || p), differentiable in x.

  p is the density of a y + s eps for y from the law; the integral is a Gauss-Hermite quadrature.

  Args:
    law: of the data.
    x: [D], D = 1 or 2.
    a, s: the noise level, scalars, s > 0.
    order: nodes along each coordinate (static). Modes much narrower than s / 10 need more nodes.

  Returns:
    [], nats.

  Raises:
    ValueError: x has another shape.

  >>> law = laws.gaussian(jnp.zeros(1), 0.0)  # the noisy data are N(0, s^2)
  >>> print(f'{kl(law, jnp.ones(1), 0.6, 0.8):.4f}')  # (a x)^2 / (2 s^2)
  0.2812
  """
  if x.ndim != 1 or x.size not in (1, 2):
    raise ValueError(f"x has shape {x.shape}; the quadrature supports the shapes [1] and [2]")
  # Probabilists' nodes for the weight exp(-e^2 / 2): with weights of sum 1 the sum is an expectation over N(0, I).
  nodes, weights = np.polynomial.hermite_e.hermegauss(order)
  # A product grid: order nodes for numbers, order^2 nodes for points of the plane.
  grid = np.stack(np.meshgrid(*[nodes] * x.size, indexing="ij"), axis=-1).reshape(-1, x.size)
  weight = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * x.size, indexing="ij"), -1), -1).reshape(-1)
  eps = jnp.asarray(grid, x.dtype)
  # log N(a x + s e; a x, s^2 I) does not depend on x, so only log p has a gradient.
  log_q = -0.5 * jnp.sum(eps**2, axis=-1) - x.size * jnp.log(s * np.sqrt(2 * np.pi))
  log_p = jax.vmap(lambda e: laws.log_density(law, a * x + s * e, a, s))(eps)
  return jnp.sum(jnp.asarray(weight, x.dtype) * (log_q - log_p))


def expected_residual(law: Mixture, x: Array, a: Array | float, s: Array | float, order: int = 64) -> Array:
  """Computes the expected residual [D] of a perfect network.

  E_eps[eps_hat(a x + s eps) - eps].

  Equals (s / a) times the gradient of `kl`. Arguments as for `kl`, with a > 0.

  >>> law = laws.gaussian(jnp.zeros(1), 0.0)
  >>> print(f'{expected_residual(law, jnp.ones(1), 0.6, 0.8)[0]:.4f}')  # (s / a) a^2 x / s^2
  0.7500
  """
  # d/dx of KL contains a factor a from z = a x + s eps; eq. 4 divides by a and multiplies by s.
  return (s / a) * jax.grad(lambda x: kl(law, x, a, s, order))(x)
