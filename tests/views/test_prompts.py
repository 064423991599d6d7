"""View prompts at known directions, and the blending weights."""
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.views import prompts


@pytest.mark.parametrize("azimuth, elevation, view", [
  (0, 0, "front"), (44, 59, "front"), (316, 0, "front"), (-44, 0, "front"), (46, 0, "side"), (90, 0, "side"),
  (270, 30, "side"), (134, 0, "side"), (136, 0, "back"), (180, 20, "back"), (224, 0, "back"), (226, 0, "side"),
  (0, 61, "overhead"), (180, 90, "overhead"), (720, 0, "front")])
def test_view_index(azimuth, elevation, view):
  index = prompts.view_index(jnp.float32(math.radians(azimuth)), jnp.float32(math.radians(elevation)))
  assert index.dtype == jnp.int32 and prompts.VIEWS[int(index)] == view


def test_view_prompts():
  assert prompts.view_prompts("a red cube") == [
    "a red cube, front view", "a red cube, side view", "a red cube, back view", "a red cube, overhead view"]


def test_weights_sum_to_one_and_agree_with_the_index():
  azimuth, elevation = np.meshgrid(np.radians(np.arange(3, 360, 7.0)), np.radians([-10.0, 0.0, 44.0, 76.0, 90.0]))
  azimuth, elevation = jnp.float32(azimuth), jnp.float32(elevation)
  weights = np.asarray(prompts.view_weights(azimuth, elevation))
  assert weights.min() >= 0
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
  np.testing.assert_array_equal(weights.argmax(-1), prompts.view_index(azimuth, elevation))


def test_weights_are_continuous_where_the_index_jumps():
  for azimuth, elevation in ((45, 0), (135, 0), (225, 0), (315, 0), (10, 60)):
    around = [prompts.view_weights(jnp.radians(azimuth + d), jnp.radians(elevation + d)) for d in (-0.01, 0.01)]
    np.testing.assert_allclose(around[0], around[1], atol=2e-3)
