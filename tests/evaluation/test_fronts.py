"""Tests the share of false fronts on the exact scene, turned, mirrored and painted scenes."""
import functools

import numpy as np
import pytest

from sds_jax.evaluation import fronts, scores
from sds_jax.shapeworld import scenes
from sds_jax.types import Camera


@pytest.fixture(scope="module")
def views(small_scores):
  """Returns (caption) -> the exact views around its scene."""
  return functools.cache(lambda caption: scores.traced(scenes.scene_from_caption(caption), fronts.ring())[0])


def test_the_ring_begins_before_the_front():
  shots: Camera = fronts.ring()
  away = np.asarray(shots.position) / fronts.DISTANCE
  height = np.sin(np.radians(fronts.ELEVATION_DEG))
  np.testing.assert_allclose(away[0], [np.cos(np.radians(15)), 0, height], atol=1e-6)
  np.testing.assert_allclose(away[fronts.AZIMUTHS // 4], [0, np.cos(np.radians(15)), height], atol=1e-6)


@pytest.mark.parametrize("caption", ["a red house", "a blue snowman", "a green chair"])
def test_the_exact_scene_has_none_and_two_fronts_are_counted(caption, views):
  exact, half = views(caption), fronts.AZIMUTHS // 2
  assert fronts.false_fronts(exact, exact) == 0.0
  # Views from behind are those from before: of the 11 views beyond 90 degrees, those within 60 degrees of the back.
  behind = np.abs((np.arange(fronts.AZIMUTHS) + half) % fronts.AZIMUTHS - half) > half // 2
  doubled = np.where(behind[:, None, None, None], np.roll(exact, half, axis=0), exact)
  assert fronts.false_fronts(doubled, exact) == pytest.approx(9 / 11)
  assert fronts.false_fronts(np.roll(exact, half, axis=0), exact) == pytest.approx(9 / 11)


def test_a_darker_colour_and_a_small_shift_make_no_front(views):
  exact = views("a red house")
  assert fronts.false_fronts(0.7 * exact, exact) == 0.0
  assert fronts.false_fronts(np.pad(exact, ((0, 0), (2, 2), (2, 2), (0, 0)))[:, 1:-3, 1:-3], exact) < 0.2
