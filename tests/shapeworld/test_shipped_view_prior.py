"""The shipped view prior is small, complete, equal to its recipe, and draws the right other views."""
import json

import jax
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib, sources
from sds_jax.shapeworld import score_view_prior, view_recipe
from sds_jax.views.cameras import CAMERA_DIM

FOLDER = sources.shipped_folder(sources.SHIPPED_VIEWS)


@pytest.fixture(scope="module")
def shipped():
  return prior_lib.build(sources.SHIPPED_VIEWS)


def test_is_at_most_25_megabytes_and_has_a_card():
  assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 25e6
  card = (FOLDER / "README.md").read_text(encoding="utf-8")
  assert "python -m sds_jax.shapeworld.train_view_prior" in card and "seed" in card
  assert (FOLDER / "samples.png").is_file() and (FOLDER / "metrics.jsonl").is_file()


def test_matches_the_recipe(shipped):
  prior, params = shipped
  assert prior.x_shape == (16, 16, 48) and prior.camera_dim == CAMERA_DIM and prior.photo.pose == "polar"
  assert prior.prediction_type == view_recipe.SCHEDULER["prediction_type"]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_draws_the_right_other_views(shipped):
  """Guards the shipped weights with 5 scenes, whose views are one batch; the card has the score over 100."""
  table, _ = score_view_prior.score(*shipped, num=5, seed=11, steps=4)
  floor = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
  assert table["iou_all"] >= floor["iou_all"] - 0.15
  angles = score_view_prior.draw_scenes(5, 11)[2]
  elevations = np.degrees(angles[:, 0, 1])
  assert table["elevation_error_deg_all"] < 0.75 * np.abs(elevations - elevations.mean()).mean()  # error of a constant
