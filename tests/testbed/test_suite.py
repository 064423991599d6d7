"""The numbers of the study's table, of clouds and curves whose answers are known."""
import json

import jax
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.testbed import estimator_settings, laws, page, study, suite, toy_laws
from sds_jax.training import choices
from sds_jax.training.config import scalar_spec

TARGET = toy_laws.law_of(toy_laws.plane(), toy_laws.TARGET)


def test_draws_of_the_law_recover_it():
  found = suite.compare_with_law(np.asarray(laws.sample(TARGET, jax.random.key(0), 4000)), TARGET)
  assert found["modes"] == 3 and 0.97 < found["near"] < 1.0
  np.testing.assert_allclose([found["spread"], found["width"]], 1.0, rtol=0.03)


@pytest.mark.parametrize("place, near, modes", [((2.2, 0.0), 1.0, 1), ((1.5, 1.5), 1.0, 1), ((9.0, 9.0), 0.0, 0)])
def test_a_collapsed_cloud(place, near, modes):
  found = suite.compare_with_law(np.full((50, 2), place), TARGET)
  assert found == pytest.approx(dict(near=near, spread=0.0, width=0.0, modes=modes), abs=1e-6)


def test_a_few_strays_do_not_cover_a_mode():
  points = np.array([[2.2, 0.0]] * 50 + [[1.5, 1.5]] * 5 + [[1.5, -1.5]] * 7)
  assert suite.compare_with_law(points, TARGET)["modes"] == 2  # a third of a third of 62 is 6.9


def curves(factor, variance):
  exact = np.array([[1.0, -2.0], [0.5, 0.5]])
  return dict(t=np.array([0.2, 0.8]), exact=exact, mean=factor * exact, variance=np.full((2, 2), variance))


def test_error_direction_and_noise():
  found = suite.curves_over_time(curves(2.0, 0.04))
  np.testing.assert_allclose(found["error"], 1.0)
  np.testing.assert_allclose(found["turned"], 0.0, atol=1e-12)
  np.testing.assert_allclose(found["noise"], np.sqrt(0.08) / (2.0 * np.sqrt([5.0, 0.5])))
  np.testing.assert_allclose(suite.curves_over_time(curves(-1.0, 0.0))["turned"], 2.0)


def test_summary_and_table():
  rest = 1.0 + np.array(suite.OMEGAS)
  found = dict(curves(2.0, 0.04), rest=rest, moving=np.where(rest > 8.0, 0.9, 0.0), cloud_moving=np.array([0.0, 0.9]),
               ends=np.asarray(laws.sample(TARGET, jax.random.key(0), 400)))
  summary = suite.summary(found)
  np.testing.assert_allclose(summary["relative_variance"], 0.16 / (4 * 5.5), rtol=0.01)
  assert summary["bias"] == pytest.approx(0.0, abs=1e-9) and summary["rest_at_strong"] == 8.5 and not summary["at_rest"]
  cells = [cell.strip() for cell in suite.table(dict(sds=summary)).splitlines()[2].split("|")[1:-1]]
  assert cells[:4] == ["`sds`", "0.00", "0.01", "8.50, moving"] and cells[5] == "3" and "moving" not in cells[7]


def test_the_study_runs_what_a_run_would():
  """Weight and times of the published defaults; the study's own are told on its page, in general and beside each.

  CSD, the bridge and VSD keep the range of t that theirs begins with, ISM the one that its ends with: particles have no
  coarse stage. RFDS has that of SDS, which it equals but for the weight.
  """
  own = {"bridge": {"t_max"}, "csd": {"t_max"}, "vsd": {"t_max"}, "ism": {"t_max"}, "rfds": {"t_max"}}
  for name, choice in choices.PUBLISHED.items():
    if name not in estimator_settings.SETTINGS:
      continue  # HiFA's second term wants latents
    setting = estimator_settings.SETTINGS[name]
    found = dict(weighting=setting.weighting, t_min=setting.t_min, t_max=setting.t_max, t_warp=setting.warp)
    for key, value in found.items():
      same = value == (scalar_spec(choice[key]) if key in ("t_min", "t_max") else choice[key])
      assert same != (key in own.get(name, ())), (name, key)
    assert ("published range" in setting.note) == (f"<code>{name}</code>" in page.INTRODUCTION) == (name in own), name


def test_the_records_that_ship_are_those_of_the_readme():
  path = study.RECORDS
  stored = json.loads(path.read_text(encoding="utf-8"))
  assert list(stored["estimators"]) == list(estimator_settings.SETTINGS) and path.stat().st_size < 60_000
  readme = (path.parents[3] / "README.md").read_text(encoding="utf-8")
  assert suite.table(stored["estimators"]) in readme
