"""The shipped text prior is small, complete, equal to the recipe, and follows captions."""
import functools
import json

import jax
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib, sources
from sds_jax.shapeworld import captions, recipe, score_prior

FOLDER = sources.shipped_folder()


@pytest.fixture(scope="module")
def shipped():
  return prior_lib.build("shapeworld")


def test_is_at_most_25_megabytes_and_has_a_card():
  assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 25e6
  card = (FOLDER / "README.md").read_text(encoding="utf-8")
  assert "python -m sds_jax.shapeworld.train_prior" in card and "seed" in card
  assert (FOLDER / "samples.png").is_file() and (FOLDER / "metrics.jsonl").is_file()


def test_matches_the_recipe(shipped):
  prior, params = shipped
  assert prior.x_shape == (16, 16, 48) and prior.camera_dim == recipe.CAMERA_DIM
  assert prior.prediction_type == recipe.SCHEDULER["prediction_type"] and prior.vocabulary == captions.WORDS
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_samples_show_the_caption(shipped, monkeypatch):
  """Guards the shipped weights with 12 captions in one batch; the model card has the score over 200."""
  monkeypatch.setattr(score_prior, "sample_views", functools.partial(score_prior.sample_views, batch=12))
  table, _ = score_prior.score(*shipped, num=12, seed=11, steps=4)
  floor = json.loads((FOLDER / "scores.json").read_text())
  assert table["colour_all"] >= floor["colour_all"] - 0.3 and table["iou_all"] >= floor["iou_all"] - 0.2
