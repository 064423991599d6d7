"""The notebooks run offline, cell after cell, and are stored without outputs."""
import json
import pathlib
import warnings

import jax
import pytest

from sds_jax.drills import tiny

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
  "estimators_on_exact_densities": dict(names=["sds", "vsd"],
                                        sizes=dict(particles=40, steps=300, draws=4, grid=2, times=2)),
  "object_from_a_sentence": dict(prompt="a red house", overrides=[  # its front fixes the one rotation that is scored
    *(f"{name}={value}" for name, value in tiny.SETTINGS.items() if name != "prompt"),
    "training.render_every=2", "export.turntable=False"]),
  "your_own_generator_and_model": dict(WIDTH=64, BATCH=32, STEPS=300)}
"""Stem of a notebook -> values of the cell tagged "parameters", as of papermill, under which it runs in seconds."""


def run(path, changes):
  """Executes the code cells, and after the cell of parameters assigns `changes`; returns the names."""
  names, parameters = {"__name__": "__main__"}, 0
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a reader's session has others than this strict one
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
      if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)  # noqa: S102
      if "parameters" in cell["metadata"].get("tags", []):
        assert changes.keys() <= names.keys(), "a parameter that the notebook does not have"
        names.update(changes)
        parameters += 1
  assert parameters == 1
  return names


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
  """The folder in which a notebook runs, as a reader's would, without network and display."""
  monkeypatch.chdir(tmp_path)
  for name, value in dict(MPLBACKEND="agg", HF_HUB_OFFLINE="1", PYTHONPATH=str(FOLDER.parents[1]),
                          JAX_DISABLE_MOST_OPTIMIZATIONS="1").items():
    monkeypatch.setenv(name, value)
  return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, empty_folder, tiny_prior):
  """Runs a copy with the smaller parameters; the object is made with a tiny prior."""
  changes = SMALL[path.stem]
  if "overrides" in changes:
    changes = changes | dict(overrides=[*changes["overrides"], f"prior.path={tiny_prior}"])
  run(path, changes)


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_at_full_size(path, empty_folder):
  run(path, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs(path):
  for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None


def test_there_are_three():
  assert len(NOTEBOOKS) == 3
