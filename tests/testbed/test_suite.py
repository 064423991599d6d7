"""The numbers of the table of the study, for clouds and curves with known answers."""
import json

import jax
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.testbed import estimator_settings, laws, page, study, suite, toy_laws

TARGET = toy_laws.law_of(toy_laws.plane(), toy_laws.TARGET)


def test_draws_of_the_law_match_the_law():
  scores = suite.compare_with_law(np.asarray(laws.sample(TARGET, jax.random.key(0), 4000)), TARGET)
  assert scores["modes"] == 3 and 0.97 < scores["near"] < 1.0
  np.testing.assert_allclose([scores["spread"], scores["width"]], 1.0, rtol=0.03)


@pytest.mark.parametrize("place, near, modes", [((2.2, 0.0), 1.0, 1), ((1.5, 1.5), 1.0, 1), ((9.0, 9.0), 0.0, 0)])
def test_a_collapsed_cloud(place, near, modes):
  scores = suite.compare_with_law(np.full((50, 2), place), TARGET)
  assert scores == pytest.approx(dict(near=near, spread=0.0, width=0.0, modes=modes), abs=1e-6)


def test_a_few_strays_do_not_cover_a_mode():
  points = np.array([[2.2, 0.0]] * 50 + [[1.5, 1.5]] * 5 + [[1.5, -1.5]] * 7)
  assert suite.compare_with_law(points, TARGET)["modes"] == 2  # a third of a third of 62 is 6.9


def curves(factor, variance):
  exact = np.array([[1.0, -2.0], [0.5, 0.5]])
  return dict(t=np.array([0.2, 0.8]), exact=exact, mean=factor * exact, variance=np.full((2, 2), variance))


def test_error_direction_and_noise():
  over_time = suite.curves_over_time(curves(2.0, 0.04))
  np.testing.assert_allclose(over_time["error"], 1.0)
  np.testing.assert_allclose(over_time["turned"], 0.0, atol=1e-12)
  np.testing.assert_allclose(over_time["noise"], np.sqrt(0.08) / (2.0 * np.sqrt([5.0, 0.5])))
  np.testing.assert_allclose(suite.curves_over_time(curves(-1.0, 0.0))["turned"], 2.0)


def test_summary_and_table():
  rest = 1.0 + np.array(suite.OMEGAS)
  measured = dict(curves(2.0, 0.04), rest=rest, moving=np.where(rest > 8.0, 0.9, 0.0),
                  cloud_moving=np.array([0.0, 0.9]),
                  ends=np.asarray(laws.sample(TARGET, jax.random.key(0), 400)))
  summary = suite.summary(measured)
  np.testing.assert_allclose(summary["relative_variance"], 0.16 / (4 * 5.5), rtol=0.01)
  assert summary["bias"] == pytest.approx(0.0, abs=1e-9) and summary["rest_at_strong"] == 8.5 and not summary["at_rest"]
  cells = [cell.strip() for cell in suite.table(dict(sds=summary)).splitlines()[2].split("|")[1:-1]]
  assert cells[:4] == ["`sds`", "0.00", "0.01", "8.50, moving"] and cells[5] == "3" and "moving" not in cells[7]


def test_settings_of_the_study_are_the_published_settings():
  """Compares weights and times with the published defaults; the page lists the exceptions.

  CSD, the bridge and VSD keep their first range of t, ISM the last range, because particles have no coarse stage. RFDS
  has the range of SDS and differs by its weight only.
  """
  exceptions = {"bridge": {"t_max"}, "csd": {"t_max"}, "vsd": {"t_max"}, "ism": {"t_max"}, "rfds": {"t_max"}}
  for name, record in ESTIMATORS.items():
    if record.published is None or name not in estimator_settings.SETTINGS:
      continue  # SDS and the like have no values of their own; HiFA's second term needs latents
    setting = estimator_settings.SETTINGS[name]
    in_study = dict(weighting=setting.weighting, t_min=setting.t_min, t_max=setting.t_max, t_warp=setting.warp)
    for key, value in in_study.items():
      same = value == getattr(record.published, key)
      assert same != (key in exceptions.get(name, ())), (name, key)
    on_page = f"<code>{name}</code>" in page.INTRODUCTION
    assert ("published range" in setting.note) == on_page == (name in exceptions), name


def test_the_shipped_records_hold_every_estimator():
  path = study.RECORDS
  stored = json.loads(path.read_text(encoding="utf-8"))
  assert list(stored["estimators"]) == list(estimator_settings.SETTINGS) and path.stat().st_size < 60_000
