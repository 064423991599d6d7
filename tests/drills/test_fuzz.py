"""The fuzz drill: deterministic tries, detection of every problem, and a few real tries."""
import re
import shutil
from pathlib import Path

import pytest

from sds_jax.drills import fuzz, fuzz_cases, hostile_configs, hostile_folders


def drawn(num=400, seed=0, strange=0.5):
  return list(fuzz_cases.tries(Path("configs"), Path("prior"), num, seed, strange))


def test_tries_are_deterministic_and_various():
  tries = drawn()
  assert tries == drawn() and tries != drawn(seed=1) and tries[:50] == drawn(50)
  texts = ["\n".join(arguments) for arguments in drawn(2000)]
  assert len(set(texts)) > 1500
  for part in ("text.py", "image2d.py", "image.py",
               "\ud800", "\u202e", "../", "\0", "x" * 5000, "prompt=", "--mode=", "<script"):
    assert any(part in text for text in texts), part[:20]


def test_every_setting_can_be_drawn():
  text, images, photo = jobs = fuzz_cases.make_jobs(Path("configs"), Path("scratch"))
  assert {"prompt", "field.mlp.hidden", "distillation.t_min"} <= set(text.settings)
  assert {"generator.pixels.init_std", "loss.sds"} <= set(images.settings)
  assert {"image", "picture.elevation_deg", "loss.mask"} <= set(photo.settings)
  assert text.settings["loss.sds"] == (float, tuple) and text.settings["seed"] == (int,)
  assert all(kind in fuzz_cases.WRONG for job in jobs for types in job.settings.values() for kind in types)


def test_hostile_things_are_named_by_their_number(tmp_path):
  (tmp_path / "prior" / "unet").mkdir(parents=True)
  (tmp_path / "prior" / "unet" / "config.json").write_text('{"a": [1, {"b": 2}]}')
  (tmp_path / "prior" / "merges.txt").write_text("a b\nb c\n")
  shutil.copytree(tmp_path / "prior", tmp_path / "done" / "1")
  digests = []
  for folder in ("x", "y"):
    (here := tmp_path / folder).mkdir()
    (here / "file").write_text("x")
    for number in range(60):
      hostile_folders.prepare(here, tmp_path, [
          f"--config.prior.path=prior-{number}", f"--workdir=done-1-{number}", f"--config.image=photo-{number}.png",
          f"--config=config-image2d-{number}.py", f"--workdir=taken-{number}", "--workdir=run", "--seed=prior-0"])
    found = hostile_folders.digest(here)
    assert len([path for path in found if path.parent == here]) == 60 * 5 + 1
    digests.append({path.relative_to(here): content for path, content in found.items()})
  assert digests[0] == digests[1]
  contents = {path: content for path, content in digests[0].items() if "photo" in str(path) or ".py" in str(path)}
  assert len(set(contents.values())) > 80


def test_hostile_settings_are_python():
  # Files of whole other contents may be broken; a single line has to reach `get_config`.
  for line in hostile_configs._STATEMENTS:
    compile(f"def get_config():\n  {line}\n  return 1\n", "x", "exec")
  for value in hostile_configs._VALUES:
    compile(value, "x", "eval")


def test_every_kind_is_drawn():
  texts = ["\n".join(arguments) for arguments in drawn(2000, strange=0.1)]
  for name in ("=taken-", "=prior-", "=view_prior-", "=done-0-", "=done-1-", "=done-2-", "=config-text3d-", "=photo-"):
    assert any(name in text for text in texts), name
  # The run that is spoilt is of the same task.
  assert all(("image2d.py" in text) == ("=done-1-" in text) for text in texts if "=done-" in text)


@pytest.fixture
def root(tmp_path):
  for name in ("here/run/checkpoints", "home", "cache"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "here" / "run" / "report.html").write_text("x")
  (tmp_path / "stderr").write_text("error: config.seed=-1 is not legal\n")
  return tmp_path


@pytest.mark.parametrize("status, stderr, stray, expected", [
  (2, "error: no\n", None, ""), (0, "optimising: 100%\n", None, ""),
  (2, "error: no\nand\n", None, "status 2 with"), (2, "error: a\u2028b\n", None, "status 2 with"),
  (2, "warning: damaged\nerror: no\n", None, ""), (2, "warning: damaged\n", None, "status 2 with"),
  (2, "", None, "status 2"), (3, "error: no\n", None, ""), (3, "error: no\nand\n", None, "status 3 with"),
  (2, "warning\nerror: no\n", None, "status 2"), (1, "Traceback", None, "status 1"), (-11, "", None, "status -11"),
  (0, "Traceback (most recent call last)\n", None, "with a traceback"),
  (2, "error: no\n", "here/x", "outside"), (0, "", "home/.config/x", "outside"), (0, "", "cache/x", ""),
  (0, "", "here/run/progress/1.png", ""), (0, "", "here/run/.1234.tmp.png", "partial files"),
])
def test_problems_are_detected(root, status, stderr, stray, expected):
  (root / "stderr").write_text(stderr, encoding="utf-8")
  new = {root / stray} if stray else set()
  problem = fuzz.find_problem(status, ["--workdir=run"], root, new, [root / "cache"])
  assert problem == "" if not expected else expected in problem, problem


def test_a_missing_report_is_detected(root):
  (root / "stderr").write_text("")
  (root / "here" / "run" / "report.html").unlink()
  assert "without report.html" in fuzz.find_problem(0, ["--workdir=run"], root, set(), [])
  (root / "here" / "run" / "image_0.png").write_text("x")
  assert fuzz.find_problem(0, ["--workdir=run"], root, set(), []) == ""


def test_a_run_that_ends_where_training_begins_is_right(root):
  (root / "stderr").write_text("")
  (root / "here" / "run" / "report.html").unlink()
  (root / fuzz.fuzz_child.ACCEPTED).touch()
  assert fuzz.find_problem(0, ["--workdir=run"], root, set(), []) == ""
  assert "outside" in fuzz.find_problem(0, ["--workdir=run"], root, {root / "here" / "x"}, [])


def test_folder_of_the_run():
  here = Path("/a/here")
  assert fuzz.run_folder(["--workdir=x", "--workdir=", "--config.workdir=../y"], here, set()) == Path("/a/y")
  assert fuzz.run_folder(["--workdir=x"], here, set()) == here / "x"
  assert fuzz.run_folder([], here, {here / "runs" / "a", here / "runs"}) == here / "runs" / "a"
  assert fuzz.run_folder(["--workdir=~"], here, set()) == Path("/a/home")
  assert fuzz.run_folder(["--config.workdir=~/x"], here, set()) == Path("/a/home/x")
  assert fuzz.run_folder([], here, set()) is None


@pytest.mark.timeout(900)  # starts many processes
def test_some_tries(capfd, monkeypatch):
  for name, value in fuzz.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  status = fuzz.main(["--num=16", "--seed=5", "--strange=0"])
  out = capfd.readouterr().out
  counts = re.search(r"(\d+) ran .*, (\d+) were accepted .*, (\d+) were refused .*, (\d+) diverged", out).groups()
  ran, accepted, refused, diverged = map(int, counts)
  assert status == 0 and ran >= 3 and refused >= 1 and ran + accepted + refused + diverged == 16, out
