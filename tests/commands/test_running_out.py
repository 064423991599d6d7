"""Runs that memory, disk or the right to write leave in the lurch: one line, status 2, and nothing lost."""
import errno
import json
import os
import time

import jax
import orbax.checkpoint as ocp
import pytest

from sds_jax.io import files, tensorboard
from sds_jax.tasks import priors
from sds_jax.training import layout

DEVICE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nLive buffers:\n ...")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  """The step of the first run serves all runs of this file, whose settings are equal."""
  compile_step, made = layout.DeviceLayout.compile, []

  def compiled(*args):
    made.append(made[0] if made else compile_step(*args))
    return made[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layout.DeviceLayout, "compile", compiled)
    yield


@pytest.fixture
def run(command, tiny_prior, linear_networks, tmp_path):
  """() -> (status, stdout, stderr's lines but the bar's) of a run of four steps, with a checkpoint of each."""
  settings = {"prior.path": tiny_prior, "generator.size": 16, "training.steps": 4, "training.checkpoint_every": 1,
              "training.log_every": 1, "training.render_every": 0, "parallel.devices": 1, "optimizer.warmup_steps": 1}

  def call():
    status, out, err = command("--config=configs/image2d.py:pixels", f"--workdir={tmp_path / 'run'}",
                               *(f"--config.{name}={value}" for name, value in settings.items()))
    return status, out, [line for line in err.splitlines() if line and "optimising" not in line]

  return call


def raiser(error, real=None, after=0):
  """A function that does as `real` so many times, and then raises."""
  calls = []

  def instead(*args, **kwargs):
    calls.append(args)
    if len(calls) > after:
      raise error
    return real(*args, **kwargs)

  return instead


def steps(folder):
  return sorted(int(name) for name in os.listdir(folder / "run" / "checkpoints") if name.isdecimal())


def in_a_step(patch):
  compile_step = layout.DeviceLayout.compile

  def compiled(self, *args):
    return raiser(DEVICE, compile_step(self, *args), after=2)

  patch.setattr(layout.DeviceLayout, "compile", compiled)


def in_a_checkpoint(patch):
  patch.setattr(ocp.CheckpointManager, "save", raiser(FULL, ocp.CheckpointManager.save, after=2))


def in_the_metrics(patch):
  patch.setattr(files, "append_metrics", raiser(FULL, files.append_metrics, after=2))


def in_the_curves(patch):
  patch.setattr(tensorboard.RecordWriter, "write", raiser(FULL, tensorboard.RecordWriter.write, after=12))


def in_the_outputs(patch):
  read_only = OSError(errno.EROFS, "Read-only file system", "image.png")
  patch.setattr(files.os, "replace", raiser(read_only, os.replace, after=1))  # config.json is written by then


@pytest.mark.parametrize("breaks, message, kept", [
  (in_a_step, "the device has run out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.)", [1, 2]),
  (in_a_checkpoint, "the disk is full (a checkpoint could not be written to ", [1, 2]),
  (in_the_metrics, "the disk is full ([Errno 28] No space left on device)", [1, 2]),
  (in_the_curves, "the disk is full ([Errno 28] No space left on device)", None),
  (in_the_outputs, "cannot be written to any more ([Errno 30] Read-only file system: 'image.png')", [3, 4])])
def test_in_the_middle_of_a_run(run, monkeypatch, tmp_path, breaks, message, kept):
  with monkeypatch.context() as patch:
    breaks(patch)
    status, _, told = run()
  assert status == 2 and len(told) == 1 and told[0].startswith("error: ") and message in told[0], told
  there = steps(tmp_path)
  assert there and there == (kept or there)
  assert told[0].endswith(f"; the same command then goes on from step {there[-1]}")
  status, out, told = run()
  assert status == 0 and f"going on from step {there[-1]} of " in out and steps(tmp_path) == [3, 4], told
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
  assert (tmp_path / "run" / "image.png").exists()


@pytest.mark.parametrize("place, name, error, message", [
  (layout.DeviceLayout, "compile", DEVICE, "the device has run out of memory"),
  (priors, "load_weights", MemoryError(), "this machine has run out of memory (MemoryError)")])
def test_before_the_first_step(run, monkeypatch, place, name, error, message):
  monkeypatch.setattr(place, name, raiser(error))
  status, _, told = run()
  assert status == 2 and len(told) == 1 and message in told[0] and "training.views" in told[0], told
  assert "goes on" not in told[0]


def test_a_clock_that_is_put_back(run, monkeypatch, tmp_path):
  """By an hour, after each time that it is asked: nothing ends, and no time is negative."""
  calls, real = [], time.time

  def clock():
    calls.append(None)
    return real() - 3600.0 * len(calls)

  monkeypatch.setattr(time, "time", clock)
  status, _, told = run()
  assert status == 0 and not told and len(calls) > 2, told
  timings = json.loads((tmp_path / "run" / "timings.json").read_text())
  assert min(timings.values()) >= 0.0
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4] and min(line["steps_per_second"] for line in lines) > 0.0
