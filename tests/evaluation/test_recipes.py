"""Tests the table of recipes: each runs with its own settings, and finished runs are not repeated."""
import json

import pytest

from sds_jax.evaluation import recipes
from sds_jax.shapeworld import captions
from sds_jax.settings.recipes.text3d import RECIPES

SPECS = [captions.parse("a red cube"), captions.parse("a green cone on top of a blue cylinder")]


@pytest.fixture
def runs(monkeypatch):
  """Returns a list that gets the settings of each run; scores depend on the number of the seed."""
  settings_run = []

  def run_set(task, specs, seeds, folder):
    settings_run.append(task.settings)
    return [dict(prompt=captions.caption(spec), seed=seed, silhouette_iou=0.5 + 0.1 * seed, volume_iou=0.4,
                 colours_right=seed == 0, colour_error=0.02, empty=False, full=seed == 1, seconds=30.0)
            for spec in specs for seed in seeds]

  monkeypatch.setattr(recipes, "CaptionRuns", lambda task, prior, params: task)
  monkeypatch.setattr(recipes.Text3DTask, "load_prior", lambda task: (None, None))
  monkeypatch.setattr(recipes, "run_set", run_set)
  return settings_run


def test_each_recipe_runs_once_with_its_own_settings(runs, tmp_path):
  for name in (recipes.DEFAULT, *RECIPES):
    recipes.run_recipe(name, SPECS, range(2), tmp_path / name)
  assert [config.prior.name for config in runs] == ["shapeworld"] * (1 + len(RECIPES))
  assert [config.field.name for config in runs] == ["mlp", "paper_mlp", *4 * ["hashgrid"]]
  again = recipes.run_recipe("dreamfusion", SPECS, range(2), tmp_path / "dreamfusion")
  assert len(runs) == 1 + len(RECIPES) and [record["seed"] for record in again] == [0, 1, 0, 1]
  stored = json.loads((tmp_path / "dreamfusion" / "records.json").read_text())
  assert stored["records"] == again and stored["config"]["field"]["name"] == "paper_mlp"


def test_other_captions_or_settings_are_run_anew(runs, tmp_path, monkeypatch):
  recipes.run_recipe("dreamfusion", SPECS, range(1), tmp_path)
  recipes.run_recipe("dreamfusion", SPECS[:1], range(1), tmp_path)
  assert len(runs) == 2
  small = RECIPES["dreamfusion"].small
  monkeypatch.setitem(small, "training.steps", small["training.steps"] + 1)
  recipes.run_recipe("dreamfusion", SPECS[:1], range(1), tmp_path)
  assert len(runs) == 3 and runs[-1].training.steps == small["training.steps"]


def test_table_has_means_and_worst_cases(runs, tmp_path):
  table = recipes.table(dict(default=recipes.run_recipe(recipes.DEFAULT, SPECS, range(2), tmp_path)))
  cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
  assert cells == ["`default`", "4", "0.550", "0.500", "0.400", "50%", "0.020", "2", "30"]
  assert len(table.splitlines()[0].split("|")) == len(table.splitlines()[1].split("|")) == len(cells) + 2
