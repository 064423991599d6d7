"""Small worlds for estimators: laws of four labels, of which a perfect network can be asked any.

Each world is a `Mixture` with leaves [4, ...]: what the prompt says, something else, a wide and shapeless law (for
negative prompts), and the null label: the first two, forgotten which.
"""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.testbed import laws
from sds_jax.testbed.denoisers import with_null
from sds_jax.testbed.laws import Mixture

WANTED, OTHER, WIDE, NULL = range(4)
"""The labels."""


def plane() -> Mixture:
  """Points of the plane: three modes of std 0.25 are wanted, two are something else."""
  wanted = laws.dataset(jnp.array([[1.5, 1.5], [2.2, 0.0], [1.5, -1.5]]), 0.25)
  other = laws.dataset(jnp.array([[-1.5, 1.0], [-1.5, -1.0]]), 0.25)
  return _world(wanted, other, laws.gaussian(jnp.zeros(2), 1.5))


def line() -> Mixture:
  """Numbers: two modes of unequal width are wanted, one is something else; the divergence has a quadrature there."""
  wanted = laws.Mixture(jnp.array([0.6, 0.4]), jnp.array([[0.6], [1.8]]), jnp.array([0.25, 0.4]))
  return _world(wanted, laws.gaussian(jnp.array([-1.2]), 0.3), laws.gaussian(jnp.zeros(1), 1.3))


def two_gaussians(std: float = 0.3) -> Mixture:
  """Numbers N(1, std^2), of which the null label knows nothing and says N(0, std^2): guidance in closed form.

  With omega of DreamFusion's convention SDS comes to rest at 1 + omega, the zero of (1 + omega) (x - 1) - omega x.
  """
  wanted, other = laws.gaussian(jnp.ones(1), std), laws.gaussian(jnp.zeros(1), std)
  wide = laws.gaussian(jnp.zeros(1), 4 * std)
  return with_null(laws.stack([wanted, other, wide]), jnp.array([0.0, 1.0, 0.0]))


def _world(wanted: Mixture, other: Mixture, wide: Mixture) -> Mixture:
  return with_null(laws.stack([wanted, other, wide]), jnp.array([0.5, 0.5, 0.0]))


def law_of(world: Mixture, label: int) -> Mixture:
  """The law of one label; components that only other labels have are there with weight 0."""
  return Mixture(world.weights[label], world.means[label], world.stds[label])
