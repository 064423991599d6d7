"""The scripts of continuous integration: they parse, name files that exist, and do not skip Python 3.13 silently."""
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / ".ci"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.is_file())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(script):
  assert os.access(script, os.X_OK) and script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
  subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_tests_and_scripts_that_they_name_exist(script):
  text = script.read_text(encoding="utf-8")
  for path in re.findall(r"(?<![\w/])(tests/[\w/]+(?:\.py)?|\.ci/\w+)", text):
    assert (FOLDER.parent / path).exists(), path
  for path, name in re.findall(r"(tests/[\w/]+\.py) -k (\w+)", text):
    assert f"def {name}(" in (FOLDER.parent / path).read_text(encoding="utf-8"), name


def test_every_thorough_test_exists():
  """Checks file and function of each line; what stands in brackets is checked when the line is needed."""
  lines = (FOLDER.parent / "tests" / "thorough.txt").read_text(encoding="utf-8").splitlines()
  ids = [line for line in lines if line and not line.startswith("#")]
  assert len(set(ids)) == len(ids) > 0
  for line in ids:
    path, name = re.fullmatch(r"(tests/[\w/]+\.py)::(\w+)(?:\[.*)?", line).groups()
    assert f"def {name}(" in (FOLDER.parent / path).read_text(encoding="utf-8"), line


@pytest.mark.parametrize("ci, status", [("true", 1), ("", 0)])
def test_without_python_3_13(tmp_path, ci, status):
  """An environment with the tools of the script, but without that Python."""
  for tool in ("bash", "dirname", "grep"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  done = subprocess.run([str(tmp_path / "bash"), str(FOLDER / "newest")], capture_output=True, text=True, check=False,
                        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "CI": ci})
  assert (done.returncode, done.stderr) == (status, "") and done.stdout.startswith("no Python 3.13")


def test_the_whole_run_includes_the_others():
  text = (FOLDER / "run").read_text(encoding="utf-8")
  assert '\n.ci/lowest > "$log" 2>&1 &\n' in text and "\n.ci/newest\n" in text
  assert all('"$root/.ci/smoke" "$folder/venv"' in (FOLDER / name).read_text() for name in ("lowest", "newest"))
