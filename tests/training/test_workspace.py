"""Tests the folder of a run: its name, unusable folders, and settings read back."""
import json
import os
import subprocess

import numpy as np
import pytest

from sds_jax import schema, settings as settings_lib, tasks
from sds_jax.io import files, run_files
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.training import workspace
from sds_jax.training.workspace import WorkdirError


@pytest.fixture
def frozen():
  config = settings_lib.defaults("text3d")
  config.update_from_flattened_dict({
    "prompt": "A Red Cube!", "seed": 7, "distillation.t_max": ((0.0, 0.98), (1.0, 0.5)), "camera.distance": (2.0, 2.5)})
  return settings_lib.validate(config)


def folder_of(settings, flag=""):
  return workspace.folder_of(flag or settings.workdir, tasks.of(settings).run_name, settings.seed)


@pytest.fixture
def full_disk(tmp_path):
  """Returns the folder of a full file system of 64 KiB."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
  try:
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
  except FileNotFoundError:
    mounted = False
  if not mounted:
    pytest.skip("a small file system cannot be mounted here (it takes root)")
  try:
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
      while True:
        file.write(b"0" * 4096)
    yield disk
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def test_default_name_of_the_folder(frozen, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert folder_of(frozen) == workspace.Path("runs/a-red-cube-7")
  workspace.make_folder(folder_of(frozen))
  assert (tmp_path / "runs" / "a-red-cube-7").is_dir() and not os.listdir(tmp_path / "runs" / "a-red-cube-7")


def test_the_flag_overrides_the_setting(frozen, tmp_path):
  settings = schema.replaced(frozen, {"workdir": str(tmp_path / "setting")})
  assert folder_of(settings) == tmp_path / "setting"
  assert folder_of(settings, str(tmp_path / "flag")) == tmp_path / "flag"


def test_a_path_through_a_missing_folder_makes_only_the_last_folder(frozen, tmp_path):
  folder = folder_of(frozen, str(tmp_path / "a" / ".." / "b"))
  assert folder == tmp_path / "b"
  workspace.make_folder(folder)
  assert [path.name for path in tmp_path.iterdir()] == ["b"]
  (tmp_path / "link").symlink_to(tmp_path / "b")
  (tmp_path / "b" / "c").mkdir()
  assert folder_of(frozen, str(tmp_path / "link" / "c" / "..")) == tmp_path / "b"


def test_folders_that_cannot_be_written_to(frozen, tmp_path):
  (tmp_path / "file").write_text("in the way")
  for folder in (tmp_path / "file", tmp_path / "file" / "below", workspace.Path("/proc/run")):
    with pytest.raises(WorkdirError, match="cannot be written to .*--workdir") as caught:
      workspace.make_folder(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
  assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_read_only_folder(frozen, tmp_path):
  (tmp_path / "locked").mkdir(mode=0o500)
  with pytest.raises(WorkdirError, match="Permission denied"):
    workspace.make_folder(tmp_path / "locked")


def test_full_disk(frozen, full_disk):
  with pytest.raises(WorkdirError, match="No space left on device"):
    workspace.make_folder(full_disk)
  with pytest.raises(OSError, match="No space left"):
    workspace.store_settings(full_disk, schema.to_dict(frozen), {})
  assert os.listdir(full_disk) == ["filler"]  # nothing half-written


def test_settings_are_read_back(frozen, tmp_path):
  workspace.store_settings(tmp_path, schema.to_dict(frozen), dict(jax="1.2.3"), dict(repo="a/b", revision="c0ffee"))
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["versions"] == {"jax": "1.2.3"} and stored["prior_source"] == {"repo": "a/b", "revision": "c0ffee"}
  again = settings_lib.validate(workspace.stored_config(tmp_path, {}))
  assert again == frozen and again.distillation.t_max == ((0.0, 0.98), (1.0, 0.5))


def test_overrides_replace_stored_settings(frozen, tmp_path):
  workspace.store_settings(tmp_path, schema.to_dict(frozen), {})
  again = settings_lib.validate(workspace.stored_config(tmp_path, {"export.mesh_resolution": 32, "seed": 8}))
  assert (again.export.mesh_resolution, again.seed, again.prompt) == (32, 8, "A Red Cube!")


def test_overrides_of_another_task_are_refused(frozen, tmp_path):
  workspace.store_settings(tmp_path, schema.to_dict(frozen), {})
  with pytest.raises(settings_lib.ConfigError, match="config.picture.framing is not a setting"):
    workspace.stored_config(tmp_path, {"picture.framing": "keep"})


@pytest.fixture
def old_run(frozen, tmp_path):
  """Returns the folder of a run that was made before there were records, with a file of the user."""
  folder = tmp_path / "old"
  workspace.store_settings(folder, schema.to_dict(frozen), {})
  files.append_metrics(folder / "metrics.jsonl", 1, {"x": 1})
  for name in ("000100.png", "mine.png"):
    files.write_json({}, folder / "progress" / name)
  with Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(3, {"x": np.zeros(2)}, {})
  return folder


def test_a_folder_from_before_there_were_records(frozen, old_run):
  layout = tasks.of(frozen).outputs()
  workspace.check_files(old_run, layout, {})
  assert not (old_run / "files.jsonl").exists()
  with workspace.hold(old_run, layout, "text3d", {}):
    workspace.store_settings(old_run, schema.to_dict(frozen), dict(jax="2"))
    assert files.truncate_metrics(old_run / "metrics.jsonl", 1) == 1
    for name in ("000100.png", "mine.png"):
      run_files.delete(old_run / "progress" / name)
    with Checkpoints(old_run / "checkpoints") as checkpoints:
      assert checkpoints.steps() == [3]
      checkpoints.clear()
  assert os.listdir(old_run / "progress") == ["mine.png"] and not os.listdir(old_run / "checkpoints")
  with workspace.hold(old_run, layout, "text3d", {}):
    pass


def test_an_old_folder_without_its_settings(frozen, old_run):
  """Checks that whole checkpoints, which hold the settings, show that a folder is a run's."""
  (old_run / "config.json").unlink()
  with workspace.hold(old_run, tasks.of(frozen).outputs(), "text3d", {}), Checkpoints(
      old_run / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [3]


@pytest.mark.parametrize("text", ["{}", '{"config": {"seed": 0}}', "mine", "[]", '{"config": null}'])
def test_a_folder_that_was_never_a_runs(frozen, old_run, text):
  (old_run / "config.json").write_text(text)
  with pytest.raises(run_files.FileInTheWayError), workspace.hold(old_run, tasks.of(frozen).outputs(), "text3d", {}):
    pytest.fail("held")
  assert (old_run / "config.json").read_text() == text and not (old_run / "files.jsonl").exists()


def test_links_in_an_old_folder_are_refused(frozen, old_run):
  (old_run / "report.html").symlink_to("nothing")
  with pytest.raises(run_files.FileInTheWayError, match="report.html is in the way: it is a link"):
    with workspace.hold(old_run, tasks.of(frozen).outputs(), "text3d", {}):
      pytest.fail("held")


def test_existing_folder(frozen, tmp_path):
  with pytest.raises(WorkdirError, match="--mode=render needs the folder of a run: --workdir="):
    workspace.existing_folder(None, "render")
  for folder in (tmp_path, tmp_path / "none"):
    with pytest.raises(WorkdirError, match="is not the folder of a run: it has no config.json"):
      workspace.existing_folder(str(folder), "export")
  workspace.store_settings(tmp_path, schema.to_dict(frozen), {})
  assert workspace.existing_folder(str(tmp_path), "export") == tmp_path


@pytest.mark.parametrize("text", ["", '{"config": {"seed"', "[1, 2]", "{}", '{"config": null}', '{"config": [1]}',
                                  '{"config": {"seed": "zero"}}', '{"config": {"render": 3}}', "\x00\x01"])
def test_damaged_settings(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(WorkdirError, match="config.json cannot be read") as caught:
    workspace.stored_config(tmp_path, {})
  assert "\n" not in str(caught.value)


def test_settings_of_an_old_checkpoint_are_in_todays_form(frozen, tmp_path):
  """Checkpoints of earlier versions hold a constant as (v,)."""
  stored = schema.to_dict(frozen)
  old = json.loads(json.dumps(stored))
  old["distillation"].update(clip_norm=[0.0], guidance_rescale=[0.0])
  assert workspace.settings_of_checkpoint(old, tmp_path) == stored
