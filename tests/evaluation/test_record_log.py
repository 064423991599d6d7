"""Tests the records of a set of runs: a stopped set goes on, and other inputs begin anew."""
import json
import types

import pytest

from sds_jax.evaluation import record_log, shapeworld
from sds_jax.evaluation.record_log import RecordLog
from sds_jax.io.files import DamagedFileError
from sds_jax.shapeworld import captions

SPECS = [captions.parse("a red cube"), captions.parse("a blue cone")]


@pytest.fixture
def make(tmp_path):
  """Returns inputs -> log in one folder."""
  return lambda **inputs: RecordLog(tmp_path / "set", inputs)


def test_records_of_equal_inputs_are_kept(make):
  log = make(steps=3, range=(0, 1))
  assert log.records == [] and log.find(seed=0) is None
  log.append(dict(prompt="a red cube", seed=0, where=(1.5, 2), iou=0.1 + 0.2))
  log.append(dict(prompt="a red cube", seed=1, where=(1.5, 2), iou=0.5))
  again = make(steps=3, range=(0, 1))
  assert again.find(prompt="a red cube", seed=0) == dict(prompt="a red cube", seed=0, where=[1.5, 2], iou=0.1 + 0.2)
  assert again.find(seed=1)["iou"] == 0.5 and again.find(prompt="a red cube", seed=2) is None
  assert again.find(colour="red") is None


def test_other_inputs_begin_anew(make):
  make(steps=3).append(dict(seed=0))
  assert make(steps=4).records == [] and make(steps=3).records == []


def test_records_of_other_inputs_are_not_lost(make, capsys):
  log = make(steps=3)
  log.append(dict(seed=7))
  make(steps=4)
  assert json.loads((log.folder / "records.old.jsonl").read_text()) == dict(seed=7)
  assert capsys.readouterr().out.count("records.old.jsonl") == 1


def test_a_damaged_line_is_told_with_its_file(make):
  log = make(steps=3)
  (log.folder / "records.jsonl").write_text("{]\n")
  with pytest.raises(DamagedFileError, match="records.jsonl has a line that is not JSON"):
    make(steps=3)


def test_an_incomplete_line_is_left_out(make):
  log = make(steps=3)
  log.append(dict(seed=0))
  log.append(dict(seed=1))
  path = log.folder / "records.jsonl"
  path.write_bytes(path.read_bytes()[:-3])
  again = make(steps=3)
  assert again.records == [dict(seed=0)]
  again.append(dict(seed=2))
  assert make(steps=3).records == [dict(seed=0), dict(seed=2)]


def test_the_digest_depends_on_the_weights_of_a_folder_or_file(tmp_path):
  (tmp_path / "unet").mkdir()
  digests = set()
  for content in (b"a", b"b"):
    (tmp_path / "unet" / "x.safetensors").write_bytes(content)
    (tmp_path / "single.safetensors").write_bytes(content * 2)
    digests |= {record_log._fingerprint(str(tmp_path)), record_log._fingerprint(str(tmp_path / "single.safetensors"))}
  digests |= {record_log._fingerprint(name) for name in ("shapeworld", "shapeworld-views")}
  assert len(digests) == 6


def test_a_stopped_set_repeats_no_finished_run(make, monkeypatch):
  """The second call runs what the first has not, and returns the records of both in the order of the set."""
  finished = []

  def optimise(prompt, seed):
    if len(finished) == 3:
      raise KeyboardInterrupt
    finished.append((prompt, seed))
    return "state"

  runs = types.SimpleNamespace(optimise=optimise, generator=types.SimpleNamespace(particles=1),
                               task=types.SimpleNamespace(view=None))
  monkeypatch.setattr(shapeworld.outputs, "pick_object", lambda state, particles, index: state)
  monkeypatch.setattr(shapeworld.outputs, "render_row", lambda view, state, count: None)
  monkeypatch.setattr(shapeworld.images, "write_png", lambda picture, path: path.touch())
  monkeypatch.setattr(shapeworld.scoring, "score", lambda generator, state, spec: dict(
      silhouette_iou=0.1 * len(finished), colour_error=0.0))
  with pytest.raises(KeyboardInterrupt):
    shapeworld.run_set(runs, SPECS, range(2), make(steps=1))
  first = list(finished)
  finished.clear()
  records = shapeworld.run_set(runs, SPECS, range(2), make(steps=1))
  assert first == [("a red cube", 0), ("a red cube", 1), ("a blue cone", 0)] and finished == [("a blue cone", 1)]
  assert [(r["prompt"], r["seed"]) for r in records] == first + finished
  assert sorted(json.dumps(r) for r in make(steps=1).records) == sorted(map(json.dumps, records))
  assert len(list(make(steps=1).folder.glob("*.png"))) == 4
