"""A whole run, interrupted in a process of its own and gone on with; its outputs made again; a failing writer."""
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

TEXT = "--config=configs/text.py"
SHADED = "--config.shading.lambertian=0.5"
"""What the tiny settings leave out."""
OUTPUTS = ("mesh.glb", "mesh.obj", "renders.png", "report.html", "config.json", "metrics.jsonl", "timings.json")


def finish(process, seconds=300):
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def one_line(err):
  return err.startswith("error: ") and err.count("\n") == 1


@pytest.fixture(scope="module")
def interrupted(start, tiny_flags, tmp_path_factory):
  """(folder, status, stdout, stderr) of a run that got Ctrl-C after some of its 400 steps."""
  folder = tmp_path_factory.mktemp("runs") / "cube"
  steps = ["--config.training.steps=400", "--config.optimizer.warmup_steps=2", SHADED]
  process = start(*tiny_flags, *steps, f"--workdir={folder}")
  end = time.monotonic() + 240
  while not (folder / "metrics.jsonl").exists():
    assert process.poll() is None and time.monotonic() < end, finish(process, 5)
    time.sleep(0.02)
  process.send_signal(signal.SIGINT)
  return folder, *finish(process)


@pytest.fixture(scope="module")
def finished():
  """What `done` has returned, once it has."""
  return []


@pytest.fixture
def done(command, finished, interrupted, tiny_flags):
  """(folder, step of the interruption, status, stdout, stderr) of the same command with a nearer end, said again."""
  if not finished:
    folder = interrupted[0]
    stopped = int(os.listdir(folder / "checkpoints")[0])
    steps = [f"--config.training.steps={stopped + 3}", "--config.optimizer.warmup_steps=2", SHADED]
    finished.extend((folder, stopped, *command(TEXT, *tiny_flags, *steps, f"--workdir={folder}")))
  return finished


def test_ctrl_c_leaves_a_folder_to_go_on_from(interrupted):
  folder, status, _, err = interrupted
  assert status == 130, err
  assert "stopped at step" in err and "the same command continues from there" in err and "Traceback" not in err
  assert len(os.listdir(folder / "checkpoints")) == 1


def test_the_same_command_goes_on(done):
  folder, stopped, status, out, err = done
  assert status == 0, err
  assert f"going on from step {stopped} of {folder}" in out and "compiling the step" in out
  assert "INFO" not in out + err and "Traceback" not in err and "Warning" not in err
  steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert steps == list(range(1, stopped + 4))


def test_all_files_are_there(done):
  folder = done[0]
  present = os.listdir(folder)
  assert set(OUTPUTS) <= set(present) and {"turntable.mp4", "turntable.gif"} & set(present)
  assert [name for name in present if name.startswith(".")] == [".lock"]  # which nobody holds
  assert json.loads((folder / "config.json").read_text())["config"]["prompt"] == "a red cube"
  assert {"load_s", "compile_s", "optimise_s", "export_s"} <= set(json.loads((folder / "timings.json").read_text()))
  with Image.open(folder / "renders.png") as picture:
    assert np.asarray(picture).std() > 1.0
  page = (folder / "report.html").read_text()
  assert "a red cube" in page and "src=\"http" not in page and "href=\"http" not in page


def test_export_again(start, done):
  """In a process of its own, from the folder alone: everything that the checkpoint makes comes back, bit for bit."""
  folder = done[0]
  pictures = ("renders.png", "mesh.glb", "mesh.obj")
  before = {name: (folder / name).read_bytes() for name in pictures}
  for name in (*pictures, "report.html"):
    (folder / name).unlink()
  process = start("--mode=export", f"--workdir={folder}", config=())
  status, out, err = finish(process)
  assert status == 0, err
  assert "from the checkpoint of step" in out and (folder / "report.html").stat().st_size > 1000
  assert all((folder / name).read_bytes() == data for name, data in before.items())


def test_render_again(command, done):
  folder = done[0]
  (folder / "renders.png").unlink()
  report = (folder / "report.html").stat().st_mtime_ns
  status, _, err = command("--mode=render", f"--workdir={folder}", TEXT, "--config.export.image_size=24")
  assert status == 0, err
  assert (folder / "renders.png").exists() and (folder / "report.html").stat().st_mtime_ns == report
  with Image.open(folder / "renders.png") as picture:
    assert picture.height == 4 * 24 + 3 * 2  # the override went over the stored settings


def test_evaluate(command, done, coarse_scores):
  folder = done[0]
  status, out, err = command("--mode=evaluate", f"--workdir={folder}")
  assert status == 0, err
  found = json.loads((folder / "scores.json").read_text())
  assert {"silhouette_iou", "volume_iou", "colour_error", "colours_right", "empty", "full"} <= set(found)
  assert 0.0 < found["silhouette_iou"] <= 1.0 and f"{found['silhouette_iou']:.3f}" in out
  assert "silhouette iou" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["scores.json", "timings.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b'{"step": 1', b"[3]\n"])
def test_a_damaged_record_is_named(command, done, name, content):
  """A file of the run that was cut or overwritten: one line that says which, and the report stays."""
  path, report = done[0] / name, (done[0] / "report.html").read_bytes()
  before = path.read_bytes() if path.exists() else None
  path.write_bytes(content if name != "metrics.jsonl" else content.strip() + b"\n")
  try:
    status, _, err = command("--mode=export", f"--workdir={done[0]}")
    assert status == 2 and one_line(err) and str(path) in err and "delete" in err, err
    assert (done[0] / "report.html").read_bytes() == report
  finally:
    path.unlink() if before is None else path.write_bytes(before)


def test_evaluate_needs_a_shapeworld_prompt(command, done):
  status, _, err = command("--mode=evaluate", f"--workdir={done[0]}", TEXT, "--config.prompt=a hamburger")
  assert status == 2 and one_line(err) and "no ground truth" in err and "'hamburger'" in err


def test_a_run_without_checkpoints(command, done, tmp_path):
  (tmp_path / "config.json").write_bytes((done[0] / "config.json").read_bytes())
  status, _, err = command("--mode=export", f"--workdir={tmp_path}")
  assert status == 2 and one_line(err) and "holds no checkpoint; run --mode=train first" in err


@pytest.mark.parametrize("target", ["renders.png", "mesh.obj", "report.html"])
def test_a_write_that_fails_leaves_the_old_file(command, done, monkeypatch, target):
  """The disk fills up in the middle of one file: one line, the old file untouched, nothing half-written."""
  from sds_jax.io import files
  folder = done[0]
  before = (folder / target).read_bytes()
  names = set(os.listdir(folder))
  replace = os.replace

  def fail(source, path):
    if os.path.basename(path) == target:
      raise OSError(28, "No space left on device", str(path))
    replace(source, path)

  monkeypatch.setattr(files.os, "replace", fail)
  status, _, err = command("--mode=export", f"--workdir={folder}")
  assert status == 2 and one_line(err) and "No space left on device" in err
  assert (folder / target).read_bytes() == before and set(os.listdir(folder)) == names


@pytest.mark.thorough
def test_a_disk_that_fills_up_during_the_run(start, tiny_flags, tmp_path):
  """Room for the settings, not for a checkpoint: one line on stderr, and no step that looks finished."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True,
                           check=False).returncode == 0 if os.geteuid() == 0 else False
  if not mounted:
    pytest.skip("a small file system cannot be mounted here (it takes root)")
  try:
    status, _, err = finish(start(*tiny_flags, f"--workdir={disk / 'run'}"))
    checkpoints = disk / "run" / "checkpoints"
    whole = [name for name in (os.listdir(checkpoints) if checkpoints.exists() else []) if name.isdigit()]
    assert not whole and status == 2, err
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and "No space left" in messages[0] and "Traceback" not in err, err
  finally:
    subprocess.run(["umount", "-l", str(disk)], check=True)
