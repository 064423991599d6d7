"""Prompt mixes and negative weights against the published rules, written in degrees and view by view."""
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.views import perp_neg_weights, prompts

FRONT, SIDE, BACK, OVERHEAD = range(4)


def slow_stable_dreamfusion(azimuth, elevation):
  """Returns ({view: share of the positive prompt}, {view: weight of the negative prompt}).

  azimuth in -180 .. 180 degrees.
  """
  if -90 <= azimuth < 90:
    r = 1 - azimuth / 90 if azimuth >= 0 else 1 + azimuth / 90
    against_front = 0.0 if r > 0.8 else -2 * math.exp(-2 * r)
    against_side = 0.0 if r < 0.2 else -2 * math.exp(-10 * (1 - r))
    return {FRONT: r, SIDE: 1 - r}, {FRONT: against_front, SIDE: against_side}
  r = 1 - (azimuth - 90) / 90 if azimuth >= 0 else 1 + (azimuth + 90) / 90
  return {SIDE: r, BACK: 1 - r}, {FRONT: -2.0, SIDE: 0.0 if r > 0.8 else -2 / 2 * math.exp(-10 * r)}


def slow_threestudio(azimuth, elevation):
  def decay(constants, r):
    a, b, c = constants
    return a * math.exp(-b * r) + c

  f_sb, f_fsb, f_fs, f_sf = (1, 0.5, -0.606), (1, 0.5, 0.967), (4, 0.5, -2.426), (4, 0.5, -2.426)
  if elevation > 60:
    return {OVERHEAD: 1.0}, {FRONT: 0.0, SIDE: 0.0}
  if abs(azimuth) < 90:
    r = 1 - abs(azimuth) / 90
    return {FRONT: r, SIDE: 1 - r}, {FRONT: -decay(f_fs, r), SIDE: -decay(f_sf, 1 - r)}
  r = 2 - abs(azimuth) / 90
  return {SIDE: r, BACK: 1 - r}, {SIDE: -decay(f_sb, r), FRONT: -decay(f_fsb, r)}


SLOW = {"stable_dreamfusion": slow_stable_dreamfusion, "threestudio": slow_threestudio}
AZIMUTHS = (-179.0, -135.0, -100.0, -91.0, -89.0, -75.0, -60.0, -10.0, 0.0, 5.0, 16.0, 20.0, 45.0, 71.0, 74.0, 88.0,
            92.0, 105.0, 110.0, 170.0, 180.0)
DIRECTIONS = [(a, e) for a in AZIMUTHS for e in (-10.0, 30.0, 59.0, 61.0, 89.0)]


@pytest.mark.parametrize("variant", perp_neg_weights.VARIANTS)
@pytest.mark.parametrize("turns", [-1, 0, 2])
def test_weights_equal_the_published_rules(variant, turns):
  azimuth, elevation = jnp.radians(jnp.float32(DIRECTIONS)).T
  mix, weights = perp_neg_weights.VARIANTS[variant](azimuth + 2 * np.pi * turns, elevation)
  assert mix.shape == (len(DIRECTIONS), 4) and weights.shape == (len(DIRECTIONS), 2)
  for i, direction in enumerate(DIRECTIONS):
    shares, against = SLOW[variant](*direction)
    np.testing.assert_allclose(mix[i], [shares.get(view, 0.0) for view in range(4)], atol=1e-5, err_msg=direction)
    expected = [against[view] for view in perp_neg_weights.NEGATIVES]
    np.testing.assert_allclose(weights[i], expected, atol=3e-5, err_msg=direction)


@pytest.mark.parametrize("variant", perp_neg_weights.VARIANTS)
def test_no_weight_attracts(variant):
  """Checks signs, the strongest weight against the front (from behind), and a single view."""
  azimuth = jnp.linspace(-np.pi, np.pi, 181)
  mix, weights = perp_neg_weights.VARIANTS[variant](azimuth, jnp.zeros(181))
  assert float(weights.max()) < 2e-4
  assert int(jnp.argmin(weights[:, 0])) in (0, 180) or float(weights[0, 0]) == float(weights[:, 0].min())
  np.testing.assert_allclose(mix.sum(-1), 1.0, atol=1e-6)
  assert [v.shape for v in perp_neg_weights.VARIANTS[variant](jnp.float32(0.3), jnp.float32(0.1))] == [(4,), (2,)]
  assert [prompts.VIEWS[view] for view in perp_neg_weights.NEGATIVES] == ["front", "side"]
