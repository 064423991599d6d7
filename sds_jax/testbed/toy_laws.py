"""Small toy_laws for estimators: laws of four labels, of which a perfect network can be asked any.

Each world is a `Mixture` with leaves [4, ...]: what the prompt says, something else, a wide and shapeless law (for
negative prompts), and the null label: the first two, forgotten which.
"""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.testbed import laws
from sds_jax.testbed.denoisers import with_null_label
from sds_jax.testbed.laws import Mixture

TARGET, OTHER, WIDE, NULL = range(4)
"""The labels."""


def plane() -> Mixture:
  """Points of the plane: three modes of std 0.25 are wanted, two are something else.

  Returns:
    Leaves [4, K], [4, K, 2], [4, K].

  >>> print([int((plane().weights[label] > 0).sum()) for label in (TARGET, OTHER, WIDE, NULL)])  # components of each
  [3, 2, 1, 5]
  """
  wanted = laws.dataset(jnp.array([[1.5, 1.5], [2.2, 0.0], [1.5, -1.5]]), 0.25)
  other = laws.dataset(jnp.array([[-1.5, 1.0], [-1.5, -1.0]]), 0.25)
  return _world(wanted, other, laws.gaussian(jnp.zeros(2), 1.5))


def line() -> Mixture:
  """Numbers: two modes of unequal width are wanted, one is something else; the divergence has a quadrature there.

  Returns:
    Leaves [4, K], [4, K, 1], [4, K].

  >>> wanted = law_of(line(), TARGET)
  >>> print(wanted.means[:2, 0], wanted.stds[:2])
  [0.6 1.8] [0.25 0.4 ]
  """
  wanted = laws.Mixture(jnp.array([0.6, 0.4]), jnp.array([[0.6], [1.8]]), jnp.array([0.25, 0.4]))
  return _world(wanted, laws.gaussian(jnp.array([-1.2]), 0.3), laws.gaussian(jnp.zeros(1), 1.3))


def two_gaussians(std: float = 0.3) -> Mixture:
  """Numbers N(1, std^2), of which the null label knows nothing and says N(0, std^2): guidance in closed form.

  With omega of DreamFusion's convention SDS comes to rest at 1 + omega, the zero of (1 + omega) (x - 1) - omega x.

  Args:
    std: of both, a number > 0.

  Returns:
    Leaves [4, K], [4, K, 1], [4, K].

  Example: omega = 2. In an image at 3 without noise, z = 0.6 * 3, the guided prediction sees none.
    >>> world, z = two_gaussians(), jnp.array([1.8])
    >>> wanted, null = (laws.expected_noise(law_of(world, label), z, 0.6, 0.8) for label in (TARGET, NULL))
    >>> print(bool(jnp.allclose(wanted + 2.0 * (wanted - null), 0.0, atol=1e-4)))
    True
  """
  wanted, other = laws.gaussian(jnp.ones(1), std), laws.gaussian(jnp.zeros(1), std)
  wide = laws.gaussian(jnp.zeros(1), 4 * std)
  return with_null_label(laws.stack([wanted, other, wide]), jnp.array([0.0, 1.0, 0.0]))


def _world(wanted: Mixture, other: Mixture, wide: Mixture) -> Mixture:
  return with_null_label(laws.stack([wanted, other, wide]), jnp.array([0.5, 0.5, 0.0]))


def law_of(world: Mixture, label: int) -> Mixture:
  """The law of one label; components that only other labels have are there with weight 0.

  Args:
    world: leaves [Y, K, ...].
    label: 0 .. Y-1.

  Returns:
    Leaves [K, ...].

  >>> print(law_of(two_gaussians(), TARGET).weights, law_of(two_gaussians(), NULL).weights)
  [1. 0. 0.] [0. 1. 0.]
  """
  return Mixture(world.weights[label], world.means[label], world.stds[label])
