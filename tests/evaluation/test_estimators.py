"""Tests the table of estimators: each runs with its own settings, and finished runs are not repeated."""
import json
import types

import pytest

from sds_jax import settings
from sds_jax.evaluation import estimators, recipes
from sds_jax.shapeworld import captions
from sds_jax.settings import ConfigError

SPECS = [captions.parse("a red cube"), captions.parse("a green cone on top of a blue cylinder")]


@pytest.fixture
def runs(monkeypatch):
  """Returns a list that gets the name of each estimator that runs."""
  names_run = []

  def run_set(task, specs, seeds, folder):
    names_run.append(task.settings.distillation.estimator)
    return [dict(prompt=captions.caption(spec), seed=seed, silhouette_iou=0.5 + 0.1 * seed, volume_iou=0.4,
                 colours_right=seed == 0, colour_error=0.02, empty=False, full=seed == 1,
                 seconds=30.0)
            for spec in specs for seed in seeds]

  monkeypatch.setattr(recipes, "CaptionRuns", lambda task, prior, params: task)
  monkeypatch.setattr(recipes.Text3DTask, "load_prior", lambda task: (None, None))
  monkeypatch.setattr(recipes, "run_set", run_set)
  return names_run


def run(names, folder, seeds=1, **changes):
  config = settings.defaults()
  config.update_from_flattened_dict(changes)
  return estimators.run(names, config, SPECS, range(seeds), folder)


def test_each_runs_once_and_records_are_reused(runs, tmp_path):
  scores = run(["sds", "sjc"], tmp_path)
  assert runs == ["sds", "sjc"] and run(["sds", "sjc"], tmp_path) == scores and len(runs) == 2
  assert estimators.read(tmp_path) == estimators.read(tmp_path / "records.json") == scores
  assert (tmp_path / "table.md").read_text().strip() == estimators.table(scores, {})
  stored = json.loads((tmp_path / "sjc" / "records.json").read_text())
  assert stored["config"]["distillation"]["estimator"] == "sjc" and stored["records"] == scores["sjc"]


def test_other_settings_are_run_anew(runs, tmp_path):
  run(["sds"], tmp_path)
  run(["sds"], tmp_path, **{"training.steps": 300})
  assert runs == ["sds", "sds"]
  assert json.loads((tmp_path / "sds" / "records.json").read_text())["config"]["training"]["steps"] == 300


def test_a_stopped_command_continues(runs, tmp_path, monkeypatch):
  good = recipes.run_set
  with monkeypatch.context() as patch:
    patch.setattr(recipes, "run_set",
                  lambda task, *a: good(task, *a) if task.settings.distillation.estimator == "sds" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(["sds", "asd"], tmp_path)
  assert runs == ["sds"] and not (tmp_path / "records.json").exists() and not (tmp_path / "asd/records.json").exists()
  assert list(run(["sds", "asd"], tmp_path)) == ["sds", "asd"] and runs == ["sds", "asd"]


def test_all_settings_are_checked_before_the_first_run(runs, tmp_path):
  with pytest.raises(ValueError, match="--estimators=sds,nothing: 'nothing' is none of sds, score"):
    run(["sds", "nothing"], tmp_path)
  with pytest.raises(ValueError, match="--estimators=: '' is none of"):
    run([], tmp_path)
  with pytest.raises(ConfigError, match="estimator sds: config.render.height=-1"):
    run(["sds"], tmp_path, **{"render.height": -1})
  assert runs == [] and not list(tmp_path.iterdir())


def test_table_has_means_worst_cases_and_times_relative_to_sds(runs, tmp_path):
  scores = run(["sds", "asd"], tmp_path, seeds=2)
  table = estimators.table(scores, dict(sds=80.0, asd=120.0))
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
  assert rows[2] == ["`sds`", "4", "0.550", "0.500", "0.400", "50%", "0.020", "2", "80", "1.00"]
  assert rows[3][-2:] == ["120", "1.50"] and len(rows[0]) == len(rows[1]) == len(rows[2])
  alone = estimators.table(dict(asd=scores["asd"]), dict(asd=120.0)).splitlines()[2]
  assert alone.endswith("| 120 | – |")


def test_steps_are_timed_in_turns_after_a_warm_up(monkeypatch, tmp_path):
  """Checks that each estimator is warmed up, that all take turns, and that the best round of each counts."""
  clock, log = [0.0], []

  class Slow:
    def __init__(self, task, prior, params):
      self.name, self.rounds = task.name, 0

    def begin(self, prompt, seed):
      return 0, (prompt,)

    def advance(self, state, fixed, numbers):
      log.append((self.name, numbers.start, len(numbers)))
      self.rounds += 1
      clock[0] += len(numbers) * (0.2 if self.name == "asd" else 0.1) * (1 + 1 / self.rounds)
      return state + len(numbers)

  monkeypatch.setattr(estimators, "CaptionRuns", Slow)
  monkeypatch.setattr(estimators.time, "perf_counter", lambda: clock[0])
  tasks = {name: types.SimpleNamespace(name=name, load_prior=lambda: (None, None)) for name in ("sds", "asd")}
  times = estimators.step_times(tasks, "a red cube", steps=5, rounds=3)
  assert log[:2] == [("sds", 0, 60), ("asd", 0, 60)] and log[2:] == [("sds", 60, 5), ("asd", 60, 5)] * 3
  assert times == pytest.approx(dict(sds=125.0, asd=250.0))


def test_a_file_without_records_is_refused(tmp_path):
  (tmp_path / "records.json").write_text('{"records": []}')
  with pytest.raises(ValueError, match="records.json holds no records of estimators"):
    estimators.read(tmp_path)
  assert estimators.read(tmp_path / "absent.json") == {}


@pytest.mark.parametrize("scale", [7.5, ((0.0, 7.5), (1.0, 3.0))])
def test_a_guidance_scale_concerns_guided_estimators_only(scale):
  config = settings.defaults()
  config.distillation.guidance_scale = scale
  by_name = {name: estimators.task_with(name, config).settings.distillation.guidance_scale for name in ("sds", "csd")}
  assert by_name["sds"] == scale and by_name["csd"] != scale
