"""Tests a run from first to last step: one compilation, no implicit transfers, repeatable, stoppable, resumable."""
import json
import os
import shutil
import signal

import jax
import jax.monitoring
import numpy as np
import pytest

from sds_jax.io import files, run_files
from sds_jax.training import layout, loop, resume


@pytest.fixture(scope="session")
def prior_and_params(linear_prior):
  return linear_prior


@pytest.fixture
def run(make_task, train, prior_and_params):
  """Returns a function (folder, changes, on_render) -> the last state of a run, as numpy."""
  def to_the_end(folder, changes=None, on_render=None):
    return jax.device_get(train(make_task(changes), folder, *prior_and_params, on_render).state)
  return to_the_end


@pytest.fixture(scope="module")
def finished(make_task, train, prior_and_params, tmp_path_factory):
  """Returns (folder, final state, [(compiled function, seconds)]) of an uninterrupted run of 4 steps."""
  folder, compiled = tmp_path_factory.mktemp("finished"), []

  def listen(event, seconds, **facts):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(facts["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    result = train(make_task(), folder, *prior_and_params, anew=True)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert set(result.timings) == {"compile_s", "optimise_s"} and min(result.timings.values()) > 0.0
  return folder, jax.device_get(result.state), compiled


def same_bits(a, b):
  return [x.tobytes() for x in map(np.asarray, jax.tree.leaves(a))] == [
    x.tobytes() for x in map(np.asarray, jax.tree.leaves(b))]


def read_lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_step_is_compiled_once_and_last(finished):
  _, state, compiled = finished
  assert int(state.step) == 4
  assert sum("step" in name for name in compiled) == 1
  assert "step" in compiled[-1], compiled


def test_files_of_a_run(finished):
  folder, _, _ = finished
  lines = read_lines(folder)
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  expected = {"sds_grad_norm", "grad_norm", "mean_opacity", "overflow", "steps_per_second"}
  assert all(expected <= set(line) for line in lines)
  assert os.listdir(folder / "checkpoints") == ["4"]
  assert any(name.startswith("events.") for name in os.listdir(folder))


def test_same_seed_same_bits(run, finished, tmp_path):
  """Checks that logging, rendering and saving do not change the result."""
  calls = []
  busy = {"training.log_every": 3, "training.render_every": 1, "training.checkpoint_every": 1}
  again = run(tmp_path, busy, lambda state, step: calls.append((step, int(state.step))))
  assert same_bits(again, finished[1])
  assert calls == [(1, 1), (2, 2), (3, 3)]
  assert [line["step"] for line in read_lines(tmp_path)] == [3, 4]
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "4"]  # keep_checkpoints is 2


def test_logged_values_are_means(run, finished, tmp_path):
  run(tmp_path, {"training.log_every": 2})
  every = read_lines(finished[0])
  for line, pair in zip(read_lines(tmp_path), (every[:2], every[2:])):
    for name in set(line) - {"step", "steps_per_second"}:
      assert line[name] == pytest.approx((pair[0][name] + pair[1][name]) / 2, rel=1e-5), name


def test_another_seed_another_object(run, finished, tmp_path):
  other = run(tmp_path, {"seed": 1})
  assert not same_bits(other.params, finished[1].params)


def test_implicit_transfers_stop_the_run(run, monkeypatch, tmp_path):
  """Checks that the guard refuses arguments on the host, which each step would copy to the device."""
  monkeypatch.setattr(layout.DeviceLayout, "put_conditions", lambda self, tree: jax.tree.map(np.asarray, tree))
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    run(tmp_path)


def test_stop_and_resume(run, finished, tmp_path, capsys):
  """Checks that a signal after step 2 of 4 saves, and that the resumed run ends in the uninterrupted bits."""
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  every = {"training.render_every": 2}
  with pytest.raises(loop.Interrupted, match="stopped at step 2 of 4; saved in .*checkpoints; the same command"):
    run(tmp_path, every, lambda state, step: os.kill(os.getpid(), signal.SIGTERM))
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
  assert os.listdir(tmp_path / "checkpoints") == ["2"]
  assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]
  with run_files.recording(tmp_path):
    files.write_json({}, tmp_path / "scores.json")
  resumed = run(tmp_path, {"resume": "must"})
  assert not (tmp_path / "scores.json").exists()  # the object has changed
  assert f"going on from step 2 of {tmp_path}" in capsys.readouterr().out
  assert same_bits(resumed, finished[1])
  keep = set(read_lines(finished[0])[0]) - {"steps_per_second"}
  assert [{k: line[k] for k in keep} for line in read_lines(tmp_path)] == [
    {k: line[k] for k in keep} for line in read_lines(finished[0])]


def test_second_interrupt_is_immediate():
  with loop._stop_requests() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_resuming_a_finished_run_does_nothing(run, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  (tmp_path / "copy" / "scores.json").write_text("{}")  # still those of this object
  assert same_bits(run(tmp_path / "copy"), finished[1])
  assert len(read_lines(tmp_path / "copy")) == 4 and (tmp_path / "copy" / "scores.json").exists()


def test_resume_never_starts_anew(run, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  with run_files.recording(tmp_path / "copy"):
    files.write_json("of the run before", tmp_path / "copy" / "progress" / "000004.png")
  (tmp_path / "copy" / "progress" / "mine.png").write_bytes(b"of the user")
  events = set(tmp_path.glob("copy/events.*"))
  with pytest.raises(loop.Interrupted, match="stopped at step 2 of 4"):
    run(tmp_path / "copy", {"resume": "never", "training.render_every": 2},
        lambda state, step: os.kill(os.getpid(), signal.SIGTERM))
  assert events and not events & set(tmp_path.glob("copy/events.*"))
  assert os.listdir(tmp_path / "copy" / "progress") == ["mine.png"]
  assert [line["step"] for line in read_lines(tmp_path / "copy")] == [1, 2]
  assert os.listdir(tmp_path / "copy" / "checkpoints") == ["2"]  # the old run's later steps would win a resume


def test_changed_settings_are_printed(run, finished, tmp_path, capsys):
  shutil.copytree(finished[0], tmp_path / "copy")
  run(tmp_path / "copy", {"divergence.patience": 7})
  assert "with other settings than before: divergence.patience=7 (was 20)\n" in capsys.readouterr().out


def test_resume_must_needs_a_checkpoint(run, tmp_path):
  with pytest.raises(resume.ResumeError, match="config.resume='must', but .* holds no checkpoint"):
    run(tmp_path, {"resume": "must"})


def test_resume_with_another_field(run, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  with pytest.raises(resume.ResumeError, match="does not fit these settings .*config.resume=never") as caught:
    run(tmp_path / "copy", {"field.mlp.hidden": 12})
  assert "Dense_0.bias is float32[8] in the checkpoint and float32[12] in the run" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_half_written_checkpoint_is_skipped(run, finished, tmp_path):
  """Checks that the folder of a killed writer, with its temporary name, is no checkpoint."""
  shutil.copytree(finished[0], tmp_path / "copy")
  folder = tmp_path / "copy" / "checkpoints"
  (folder / "5.orbax-checkpoint-tmp").mkdir()
  (folder / "5.orbax-checkpoint-tmp" / "junk").write_text("cut off")
  assert int(run(tmp_path / "copy").step) == 4
