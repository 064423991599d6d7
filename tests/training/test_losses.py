"""Compares the regularisers with their closed forms."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training.terms import regularisers as losses
from sds_jax.types import RenderOutput


def render(opacity, orientation=None):
  opacity = jnp.asarray(opacity, jnp.float32)
  none = jnp.zeros((*opacity.shape, 3))
  orientation = jnp.zeros_like(opacity) if orientation is None else jnp.asarray(orientation, jnp.float32)
  return RenderOutput(rgb=none, opacity=opacity, depth=opacity, normals=none, orientation=orientation)


def test_opacity():
  values = np.array([[[0.0, 0.25], [0.5, 1.0]]])
  expected = np.mean([math.sqrt(v * v + 0.01) for v in values.ravel()])
  assert float(losses.opacity(render(values))) == pytest.approx(expected, rel=1e-6)
  assert float(losses.opacity(render(np.zeros((1, 4, 4))))) == pytest.approx(0.1, rel=1e-6)


def test_entropy():
  values = np.array([[[0.1, 0.25], [0.5, 0.9]]])
  expected = np.mean([-v * math.log(v) - (1 - v) * math.log(1 - v) for v in values.ravel()])
  assert float(losses.entropy(render(values))) == pytest.approx(expected, rel=1e-5)
  assert float(losses.entropy(render(np.full((1, 2, 2), 0.5)))) == pytest.approx(math.log(2.0), rel=1e-6)
  assert float(losses.entropy(render([[[0.0, 1.0]]]))) < 2e-4


def test_orientation():
  assert float(losses.orientation(render(np.zeros((1, 1, 4)), [[[0.0, 0.5, 1.0, 2.5]]]))) == 1.0


@pytest.mark.parametrize("name, downhill", [("opacity", -1.0), ("entropy", 1.0)])
def test_gradients_are_finite_and_of_the_right_sign(name, downhill):
  """Checks the signs at opacity 0.9 (opacity towards 0, entropy towards 1) and finite gradients at 0 and 1."""
  slope = jax.grad(lambda v: losses.REGULARISERS[name](render(v)))
  assert float(slope(jnp.full((1, 1, 1), 0.9)).sum()) * downhill < 0.0
  assert bool(jnp.isfinite(slope(jnp.asarray([[[0.0, 1.0, 0.5]]]))).all())
