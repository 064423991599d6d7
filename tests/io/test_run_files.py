"""The record of what runs have written: what is a run's own, and what in a folder is in a run's way."""
import os
import re
import shutil

import numpy as np
import pytest

from sds_jax.io import files, run_files
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.io.run_files import FileInTheWayError, RunFiles

LAYOUT = {"a.json": None, "metrics.jsonl": None, "checkpoints": run_files.CHECKPOINTS, "one": {"a.json": None},
          "progress": {re.compile(r"\d{6}\.png"): None}}


@pytest.fixture
def written(tmp_path):
  """A folder in which a run has written a.json, progress/000001.png, metrics.jsonl and a checkpoint."""
  folder = tmp_path / "run"
  folder.mkdir()
  with run_files.recording(folder):
    files.write_json({"a": 1}, folder / "a.json")
    files.write_json({"a": 2}, folder / "progress" / "000001.png")
    files.append_metrics(folder / "metrics.jsonl", 1, {"x": 1})
    with Checkpoints(folder / "checkpoints") as checkpoints:
      checkpoints.save(3, {"x": np.zeros(2)}, {})
  files.append_metrics(folder / "metrics.jsonl", 2, {"x": 1})  # a killed run's last line
  return folder


def test_what_a_run_has_written_is_its_own(written):
  record = RunFiles(written)
  record.check(LAYOUT)
  for name in ("a.json", "progress/000001.png", "metrics.jsonl"):
    assert record.owns(record.folder / name), name
  (written / "notes.txt").write_text("mine")
  (written / "progress" / "mine.png").write_text("mine")
  RunFiles(written).check(LAYOUT)  # neither is in the way
  assert not record.owns(record.folder / "notes.txt")


def link(target):
  return lambda path: path.symlink_to(target)


def hard_link(path):
  (path.parent.parent / "other").write_text("mine")
  os.link(path.parent.parent / "other", path)


MEMBERS = {
    "another's file": lambda path: path.write_text("mine"), "an empty file": lambda path: path.touch(),
    "a link": link("../victim"), "a dangling link": link("../nothing"), "a link to itself": link("a.json"),
    "a folder": lambda path: path.mkdir(), "a pipe": os.mkfifo, "a hard link": hard_link}


@pytest.mark.parametrize("place", ["a.json", "A.JSON", "one/a.json", "progress/000007.png", "metrics.jsonl"])
@pytest.mark.parametrize("member", MEMBERS)
def test_anything_else_is_in_the_way(tmp_path, place, member):
  (tmp_path / "victim").write_text("mine")
  path = tmp_path / "run" / place
  path.parent.mkdir(parents=True)
  MEMBERS[member](path)
  with pytest.raises(FileInTheWayError, match="is in the way.*another --workdir"):
    RunFiles(tmp_path / "run").check(LAYOUT)
  with run_files.recording(tmp_path / "run"):
    run_files.delete(path)
    assert os.path.lexists(path)
    if place != "A.JSON":
      with pytest.raises(FileInTheWayError):
        files.write_json({}, path)
  assert not (tmp_path / "nothing").exists() and (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["one", "progress", "checkpoints"])
@pytest.mark.parametrize("member", ["another's file", "a link", "a dangling link", "a pipe"])
def test_folders_that_are_none(tmp_path, name, member):
  (tmp_path / "victim").mkdir()
  (tmp_path / "run").mkdir()
  MEMBERS[member](tmp_path / "run" / name)
  with pytest.raises(FileInTheWayError, match=f"{name} is in the way"):
    RunFiles(tmp_path / "run").check(LAYOUT)


@pytest.mark.parametrize("name", ["7", "0007", "7.orbax-checkpoint-tmp", ".deleted-7"])
def test_checkpoints_of_others(written, name):
  """Neither read nor removed, also when all of a run are."""
  (written / "checkpoints" / name).mkdir()
  (written / "checkpoints" / name / "state").write_text("mine")
  with pytest.raises(FileInTheWayError, match=re.escape(name)):
    RunFiles(written).check(LAYOUT)
  with run_files.recording(written), Checkpoints(written / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [3]
    checkpoints.clear()
    assert checkpoints.steps() == []
  assert os.listdir(written / "checkpoints") == [name]


def test_a_users_notes_within_a_checkpoint_stay(written):
  (written / "checkpoints" / "3" / "state" / "notes.txt").write_text("mine")
  with pytest.raises(FileInTheWayError, match="checkpoints/3"):
    RunFiles(written).check(LAYOUT)
  with run_files.recording(written), Checkpoints(written / "checkpoints") as checkpoints:
    checkpoints.clear()
  assert (written / "checkpoints" / "3" / "state" / "notes.txt").exists()


@pytest.mark.parametrize("name", ["a.json", "metrics.jsonl"])
def test_a_file_that_was_changed_is_no_longer_the_runs(written, name):
  (written / name).write_bytes(b"mine" * 100)
  with pytest.raises(FileInTheWayError, match=f"{name} is in the way: it has changed since a run wrote it.*delete"):
    RunFiles(written).check(LAYOUT)
  with run_files.recording(written):
    run_files.delete(written / name)
  assert (written / name).read_bytes() == b"mine" * 100


def test_own_files_are_replaced_and_deleted(written):
  with run_files.recording(written):
    files.write_json({"a": 3}, written / "a.json")
    files.write_json({"a": 4}, written / "a.json")
    run_files.delete(written / "progress" / "000001.png")
    assert files.truncate_metrics(written / "metrics.jsonl", 1) == 1
    files.append_metrics(written / "metrics.jsonl", 2, {"x": 2})
    files.truncate_metrics(written / "metrics.jsonl", 0)
    files.append_metrics(written / "metrics.jsonl", 1, {"x": 3})
  assert not (written / "progress" / "000001.png").exists()
  RunFiles(written).check(LAYOUT)


def test_files_of_a_users_function(written):
  """Checks that a later run may replace a file that the user's export has written for a run."""
  with run_files.recording(written):
    (written / "one").mkdir()
    (written / "one" / "a.json").write_text("by the user's export")
    run_files.note(written / "one" / "a.json")
    run_files.note(written / "one" / "nothing")
  RunFiles(written).check(LAYOUT)


def test_a_copy_of_the_folder_is_a_run_too(written, tmp_path):
  os.rename(written, tmp_path / "moved")
  RunFiles(tmp_path / "moved").check(LAYOUT)


def test_a_backup_of_hard_links_does_not_change(written, tmp_path):
  shutil.copytree(written, tmp_path / "backup", copy_function=os.link)
  before = {path: path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file()}
  with run_files.recording(written):
    files.truncate_metrics(written / "metrics.jsonl", 2)
    files.append_metrics(written / "metrics.jsonl", 3, {"x": 2})
    files.write_json({"a": 3}, written / "a.json")
  assert all(path.read_bytes() == data for path, data in before.items())
  RunFiles(tmp_path / "backup").check(LAYOUT)


def test_a_record_that_was_cut_off(written):
  path = written / run_files.FILE_NAME
  whole = path.read_bytes()
  path.write_bytes(whole[:-5])  # the last line, of the checkpoint's files
  with run_files.recording(written):
    files.write_json({"a": 5}, written / "a.json")
  assert RunFiles(written).owns((written / "a.json").resolve())
  RunFiles(written).check(LAYOUT)


@pytest.mark.parametrize("text", ["", "[1]", "mine\n", '{"files_written_by_runs": 9}\n', "\0\0"])
def test_another_file_of_the_records_name(tmp_path, text):
  (tmp_path / run_files.FILE_NAME).write_text(text)
  with pytest.raises(FileInTheWayError, match="is no record"):
    RunFiles(tmp_path)


@pytest.mark.parametrize("line", ['{"path": "../victim", "bytes": 4, "sha256": "x"}', '{"path": 3}',
                                  '{"path": "a.json"}', "[]", "null",
                                  '{"path": "a.json", "bytes": "4", "sha256": null}'])
def test_hostile_lines_own_nothing(tmp_path, line):
  (tmp_path / "victim").write_text("mine")
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "a.json").write_text("mine")
  (folder / run_files.FILE_NAME).write_text('{"files_written_by_runs": 1}\n' + line + "\n")
  with pytest.raises(FileInTheWayError):
    RunFiles(folder).check(LAYOUT)
  assert (tmp_path / "victim").read_text() == "mine"


def test_names_of_a_layout():
  for name, expected in (("a.json", True), ("A.json", True), ("one/a.json", True), ("progress/000001.png", True),
                         ("progress/1.png", False), ("one", False), ("b", False), ("checkpoints/3/state/x", True)):
    assert run_files.is_in(LAYOUT, run_files.Path(name)) == expected, name
