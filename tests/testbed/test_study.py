"""The page of the study is complete and has every estimator; mistakes on the command line give one-line errors."""
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sds_jax.testbed import study, suite
from sds_jax.testbed.estimator_settings import SETTINGS
from sds_jax.testbed.suite import Sizes

SMALL = Sizes(particles=4, steps=200, draws=4, grid=2, times=2)
"""As in the examples of the documentation, whose compiled programs serve here."""
RECORD = dict(silhouette_iou=0.8, volume_iou=0.7, colours_right=True, colour_error=0.1, empty=False, full=False,
              seconds=30.0)


class Page(HTMLParser):
  """Collects the ids of sections, the sources of images, and unclosed tags."""

  def __init__(self, text):
    super().__init__()
    self.sections, self.images, self.open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag not in ("meta", "link", "img"):
      self.open.append(tag)
    if tag == "section":
      self.sections.append(dict(attributes).get("id"))
    if tag == "img":
      self.images.append(dict(attributes)["src"])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def random_measurements(name, sizes):
  """Returns random arrays in the layout of `suite.run`."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
  return dict(start=draw(9, 2), ends=draw(9, 2), guided_ends=9 * draw(9, 2), points=draw(9, 2), field=draw(9, 2),
              t=np.linspace(0.1, 0.9, 3), mean=draw(3, 4), variance=draw(3, 4) ** 2, exact=draw(3, 4),
              rest=draw(len(suite.OMEGAS)), moving=np.zeros(len(suite.OMEGAS)), cloud_moving=np.zeros(2))


def test_a_real_study_of_two_estimators(tmp_path):
  path = study.write_study(["sds", "vsd"], tmp_path / "new", SMALL, {})
  page = Page(path.read_text(encoding="utf-8"))
  assert page.open == [] and [name for name in page.sections if name] == ["sds", "vsd"]
  assert len(page.images) == 5 and all(source.startswith("data:image/png;base64,") for source in page.images)
  assert study.COMMAND in path.read_text(encoding="utf-8")
  stored = json.loads((tmp_path / "new" / "records.json").read_text())
  assert list(stored["estimators"]) == ["sds", "vsd"] and stored["sizes"]["steps"] == SMALL.steps
  assert stored["estimators"]["sds"]["bias"] < 0.01 < stored["estimators"]["vsd"]["bias"]
  assert (tmp_path / "new" / "table.md").read_text().strip() == suite.table(stored["estimators"])
  assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["records.json", "study.html", "table.md"]


def test_the_page_has_every_estimator_and_needs_no_network(tmp_path, monkeypatch):
  monkeypatch.setattr(study.suite, "run", random_measurements)
  monkeypatch.setattr(study.page.figures, "data_uri", lambda figure: "data:image/png;base64,AA==")  # drawing takes long
  monkeypatch.setattr(study.page.figures, "estimator_figure", lambda measured: None)  # drawn in the study above
  scores = {name: [dict(RECORD, seconds=30.0 + i)] for i, name in enumerate(SETTINGS)}
  text = study.write_study(list(SETTINGS), tmp_path, SMALL, scores).read_text(encoding="utf-8")
  page = Page(text)
  assert page.open == [] and [name for name in page.sections if name] == list(SETTINGS)
  assert "default-src 'none'" in text and not re.search(r"""(src|href)=["']?(https?:|//|/|\.)""", text)
  assert "{{" not in text and "<td>0.800</td>" in text and study.COMMAND not in text
  assert all(f'href="#{name}"' in text for name in SETTINGS)


def test_records_of_runs_are_loaded(tmp_path):
  (tmp_path / "records.json").write_text(json.dumps(dict(estimators=dict(sds=[RECORD]))))
  for path in (tmp_path, tmp_path / "records.json"):
    assert study.load_scores(str(path)) == dict(sds=[RECORD])
  with pytest.raises(FileNotFoundError, match="--shapeworld=/nowhere: no records there"):
    study.load_scores("/nowhere")


@pytest.mark.parametrize("arguments, message", [
  (["--estimators=sds,nothing"], "--estimators=sds,nothing: 'nothing' is none of sds, score"),
  (["--run_shapeworld", "--shapeworld=x"], "--shapeworld=x"),
  (["sds"], "'sds' is not an option")])
def test_mistakes_are_one_line(call_main, arguments, message, tmp_path):
  status, _, err = call_main(study.main, "study", f"--out={tmp_path / 'o'}", *arguments)
  assert status == 2 and "Traceback" not in err, err
  assert message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
  assert not (tmp_path / "o").exists()
