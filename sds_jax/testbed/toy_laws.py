"""Toy laws of four labels for experiments with estimators and perfect networks.

Each function returns a `Mixture` with leaves [4, ...]: the law of the prompt (TARGET), another law (OTHER), a wide law
without structure for negative prompts (WIDE), and the law of the null label (NULL), a mixture of TARGET and OTHER.
"""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.testbed import laws
from sds_jax.testbed.denoisers import with_null_label
from sds_jax.testbed.laws import Mixture

TARGET, OTHER, WIDE, NULL = range(4)
"""The four labels."""


def plane() -> Mixture:
  """Returns laws of points in the plane.

  There are three target modes and two others, of std 0.25.

  Returns:
    Leaves [4, K], [4, K, 2], [4, K].

  >>> print([int((plane().weights[label] > 0).sum()) for label in (TARGET, OTHER, WIDE, NULL)])  # components of each
  [3, 2, 1, 5]
  """
  target = laws.dataset(jnp.array([[1.5, 1.5], [2.2, 0.0], [1.5, -1.5]]), 0.25)
  # On the other side of the origin, so that guidance moves particles to the right.
  other = laws.dataset(jnp.array([[-1.5, 1.0], [-1.5, -1.0]]), 0.25)
  return _four_laws(target, other, laws.gaussian(jnp.zeros(2), 1.5))


def line() -> Mixture:
  """Returns laws of numbers.

  There are two target modes of unequal width and another mode.

  In a single dimension `kl_divergence` has an exact quadrature.

  Returns:
    Leaves [4, K], [4, K, 1], [4, K].

  >>> target = law_of(line(), TARGET)
  >>> print(target.means[:2, 0], target.stds[:2])
  [0.6 1.8] [0.25 0.4 ]
  """
  target = laws.Mixture(jnp.array([0.6, 0.4]), jnp.array([[0.6], [1.8]]), jnp.array([0.25, 0.4]))
  return _four_laws(target, laws.gaussian(jnp.array([-1.2]), 0.3), laws.gaussian(jnp.zeros(1), 1.3))


def two_gaussians(std: float = 0.3) -> Mixture:
  """Returns laws of numbers with guidance in closed form.

  The target is N(1, std^2) and the null label is N(0, std^2). With omega in DreamFusion's convention SDS comes to rest
  at 1 + omega, the zero of (1 + omega) (x - 1) - omega x.

  Args:
    std: standard deviation of both, > 0.

  Returns:
    Leaves [4, K], [4, K, 1], [4, K].

  Example: omega = 2. For an image at 3 without noise, z = 0.6 * 3, the guided prediction is 0.
    >>> label_laws, z = two_gaussians(), jnp.array([1.8])
    >>> target, null = (laws.expected_noise(law_of(label_laws, label), z, 0.6, 0.8) for label in (TARGET, NULL))
    >>> print(bool(jnp.allclose(target + 2.0 * (target - null), 0.0, atol=1e-4)))
    True
  """
  target, other = laws.gaussian(jnp.ones(1), std), laws.gaussian(jnp.zeros(1), std)
  # Wide enough to cover both Gaussians.
  wide = laws.gaussian(jnp.zeros(1), 4 * std)
  # The null label is OTHER alone: a mixture of both would have no closed form for the point of rest.
  return with_null_label(laws.stack([target, other, wide]), jnp.array([0.0, 1.0, 0.0]))


def _four_laws(target: Mixture, other: Mixture, wide: Mixture) -> Mixture:
  # The wide law is for negative prompts only and no part of the data.
  return with_null_label(laws.stack([target, other, wide]), jnp.array([0.5, 0.5, 0.0]))


def law_of(label_laws: Mixture, label: int) -> Mixture:
  """Returns the law of a label.

  Padding components have weight 0.

  Args:
    label_laws: leaves [Y, K, ...].
    label: 0 .. Y-1.

  Returns:
    Leaves [K, ...].

  >>> print(law_of(two_gaussians(), TARGET).weights, law_of(two_gaussians(), NULL).weights)
  [1. 0. 0.] [0. 1. 0.]
  """
  return Mixture(label_laws.weights[label], label_laws.means[label], label_laws.stds[label])
