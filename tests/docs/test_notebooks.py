"""The notebooks run offline, cell after cell, and are stored without outputs."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

RUNNER = """
import json, sys
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
  if cell["cell_type"] == "code":
    exec(compile("".join(cell["source"]), "cell", "exec"), globals())
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
  """A copy runs in an empty folder, as a reader's would."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu", MPLBACKEND="agg", HF_HUB_OFFLINE="1",
                     PYTHONPATH=str(FOLDER.parents[1]), XLA_FLAGS="")
  done = subprocess.run([sys.executable, "-c", RUNNER, str(path)], cwd=tmp_path, env=environment, text=True,
                        capture_output=True, timeout=590, check=False)
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs(path):
  for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None


def test_there_are_three():
  assert len(NOTEBOOKS) == 3
