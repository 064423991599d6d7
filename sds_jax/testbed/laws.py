"""Probability laws with known noisy marginals: mixtures of Gaussians, and finite data sets.

For x with density sum_k w_k N(m_k, c_k^2 I), z = a x + s eps has density sum_k w_k N(a m_k, v_k I), v_k = a^2 c_k^2 +
s^2. Every target of a diffusion model therefore has a closed form at any noise level (a, s), and estimators can be
compared with the truth rather than with another estimate.

  >>> law = gaussian(jnp.array([0.5]), 0.1)                        # every "image" is a number near 0.5
  >>> eps_hat = expected_noise(law, jnp.array([1.0]), 0.6, 0.8)       # E[eps | z = 1] at a = 0.6, s = 0.8
  >>> print(f"{eps_hat[0]:.4f}")
  0.8701
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.types import Array, PyTree


class Mixture(PyTree):
  """A mixture of K isotropic Gaussians over arrays of any shape [...].

  Every leaf may have leading batch axes.

  Attributes:
    weights: [K], positive, sum 1.
    means: [K, ...].
    stds: [K], the standard deviation of every coordinate; 0 makes a component a point.

  Example: for pure noise z, the expectation of x is the mean of the law.
    >>> law = Mixture(jnp.array([0.25, 0.75]), jnp.array([[-1.0], [1.0]]), jnp.array([0.1, 0.3]))
    >>> print(f"{expected_clean(law, jnp.array([0.7]), 0.0, 1.0)[0]:.2f}")
    0.50
  """
  weights: Array
  means: Array
  stds: Array


def gaussian(mean: Array, std: Array | float) -> Mixture:
  """Returns a single Gaussian with a common standard deviation.

  Args:
    mean: [...].
    std: [], of every coordinate.

  >>> print(gaussian(jnp.zeros(2), 0.1).means.shape)
  (1, 2)
  """
  # Explicit float32: strict promotion refuses a mixture of dtypes later.
  mean = jnp.asarray(mean, jnp.float32)
  return Mixture(jnp.ones(1), mean[None], jnp.full((1,), std, jnp.float32))


def dataset(points: Array, std: Array | float = 0.0) -> Mixture:
  """Returns the law of a finite data set of K points.

  All points are equally likely, each blurred by `std`.

  Args:
    points: [K, ...].
    std: [], of every coordinate.

  >>> print(dataset(jnp.eye(4)).weights)
  [0.25 0.25 0.25 0.25]
  """
  points = jnp.asarray(points, jnp.float32)
  count = points.shape[0]
  return Mixture(jnp.full((count,), 1.0 / count), points, jnp.full((count,), std, jnp.float32))


def union(laws: Mixture, shares: Array) -> Mixture:
  """Returns the marginal law of x over random labels.

  Args:
    laws: leaves [Y, ...], the law under each of Y labels.
    shares: [Y], probabilities of the labels, sum 1.

  >>> both = union(stack([gaussian(jnp.zeros(1), 1.0), gaussian(jnp.ones(1), 1.0)]), jnp.array([0.25, 0.75]))
  >>> print(both.weights, both.means[:, 0])
  [0.25 0.75] [0. 1.]
  """
  # Weights of a component multiply: P(label) P(component | label).
  flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
  return Mixture(flat(shares[:, None] * laws.weights), flat(laws.means), flat(laws.stds))


def stack(laws: list[Mixture]) -> Mixture:
  """Stacks Y laws into leaves [Y, ...].

  Laws with fewer components are padded with components of weight 0.

  >>> print(stack([gaussian(jnp.zeros(1), 1.0), dataset(jnp.zeros((3, 1)))]).weights.shape)
  (2, 3)
  """
  # vmap over labels needs equal shapes.
  most = max(law.weights.shape[0] for law in laws)
  filled = [jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.zeros((most - leaf.shape[0], *leaf.shape[1:]))]), law)
            for law in laws]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)


def sample(law: Mixture, key: Array, count: int) -> Array:
  """Draws `count` samples [count, ...] of x; consumes `key`.

  >>> print(sample(dataset(jnp.full((4, 2), 0.5)), jax.random.key(0), 1))
  [[0.5 0.5]]
  """
  key_component, key_noise = jax.random.split(key)
  component = jax.random.choice(key_component, law.weights.shape[0], (count,), p=law.weights)
  means = law.means[component]
  stds = law.stds[component].reshape((count,) + (1,) * (means.ndim - 1))
  return means + stds * jax.random.normal(key_noise, means.shape)


def _components(law: Mixture, z: Array, a: Array, s: Array) -> tuple[Array, Array, Array]:
  """Returns gaps, variances and log weights of the components.

  z - a m_k [K, ...], v_k [K], and log(w_k N(z; a m_k, v_k)) [K].
  """
  # All components at once; the posterior over components is a softmax of the log weights.
  gap = z[None] - a * law.means
  variance = a**2 * law.stds**2 + s**2
  # Arrays of any shape are flattened, since the Gaussians are isotropic.
  square = jnp.sum(gap.reshape(gap.shape[0], -1) ** 2, axis=-1)
  empty = law.weights <= 0.0
  # The inner `where` keeps the derivative of log finite for empty components; the outer removes them.
  log_weight = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, law.weights)))
  return gap, variance, log_weight - 0.5 * square / variance - 0.5 * z.size * jnp.log(2 * np.pi * variance)


def log_density(law: Mixture, z: Array, a: Array | float, s: Array | float) -> Array:
  """Computes log p(z) [] of z [...] = a x + s eps.

  Args:
    law: of x.
    z: [...].
    a, s: the noise level, scalars, s > 0.

  >>> print(f'{log_density(gaussian(jnp.zeros(1), 0.0), jnp.zeros(1), 0.0, 1.0):.4f}')  # -log(2 pi) / 2
  -0.9189
  """
  return jax.nn.logsumexp(_components(law, z, jnp.asarray(a), jnp.asarray(s))[2])


def expected_noise(law: Mixture, z: Array, a: Array | float, s: Array | float) -> Array:
  """Computes E[eps | z] [...], a perfect prediction.

  Equals -s times the gradient of `log_density` with respect to z. Arguments as for `log_density`.

  >>> print(expected_noise(dataset(jnp.zeros((1, 2))), jnp.ones(2), 0.6, 0.5))  # one point at 0: z = 0.5 eps
  [2. 2.]
  """
  gap, variance, logits = _components(law, z, jnp.asarray(a), jnp.asarray(s))
  # Posterior weights by softmax of log densities: the densities themselves underflow far from the data.
  share = jax.nn.softmax(logits) / variance
  return s * jnp.tensordot(share, gap, axes=1)


def expected_clean(law: Mixture, z: Array, a: Array | float, s: Array | float) -> Array:
  """Computes E[x | z] [...], at a = 0 the mean.

  Arguments as for `log_density`.

  >>> print(expected_clean(dataset(jnp.full((1, 2), 3.0)), jnp.ones(2), 0.6, 0.8))
  [3. 3.]
  """
  gap, variance, logits = _components(law, z, jnp.asarray(a), jnp.asarray(s))
  share = jax.nn.softmax(logits)
  # Not (z - s E[eps | z]) / a, which divides by zero for pure noise.
  return jnp.tensordot(share, law.means, axes=1) + jnp.tensordot(share * a * law.stds**2 / variance, gap, axes=1)
