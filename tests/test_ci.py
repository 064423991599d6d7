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


@pytest.mark.parametrize("fails", ["", "newest", "lowest", "tests"])
def test_the_whole_run_includes_the_others(tmp_path, fails):
  """The script among stubs of what it calls: each failure is the script's, and pytest's line is the last."""
  (tmp_path / ".ci").mkdir()
  shutil.copy(FOLDER / "run", tmp_path / ".ci" / "run")
  stubs = {f".ci/{name}": f"echo {name} was here; {'exit 3' if name == fails else ''}" for name in ("newest", "lowest")}
  for path, text in {**stubs, "chromium": ""}.items():
    (tmp_path / path).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / path).chmod(0o755)
  status = 1 if fails == "tests" else 0
  (tmp_path / "README.md").write_text(
    f"# Title\n\n    python3 -m venv --help > /dev/null && echo 3 passed && (exit {status}) # pytest\n")
  done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False,
                        env=dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", TMPDIR=str(tmp_path)))
  assert done.returncode == (1 if fails else 0)
  if not fails:
    assert done.stdout.splitlines()[-3:] == ["newest was here", "lowest was here", "3 passed"]
  elif fails != "tests":
    assert done.stdout.splitlines()[-2:] == [f"{fails} was here", f".ci/{fails} failed"]


def test_other_versions_run_the_tasks():
  assert all('"$root/.ci/smoke" "$folder/venv"' in (FOLDER / name).read_text() for name in ("lowest", "newest"))
