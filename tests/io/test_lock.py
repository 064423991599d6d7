"""The lock of a run's folder, with processes that do not import JAX."""
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from sds_jax.io import lock

SOURCE = Path(lock.__file__)
HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
try:
  with lock.hold(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
except lock.LockedError as error:
  print(error)
"""


@contextlib.contextmanager
def holder(folder):
  """Starts a process that locks the folder until the end of standard input; yields (process, first line)."""
  process = subprocess.Popen([sys.executable, "-c", HOLDER, SOURCE, folder], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
  try:
    yield process, process.stdout.readline().strip()
  finally:
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_with_the_holder(tmp_path):
  with holder(tmp_path) as (first, word):
    assert word == "held"
    for _ in range(2):  # a refused attempt must not erase the holder
      with pytest.raises(lock.LockedError) as caught, lock.hold(tmp_path):
        pytest.fail("held twice")
      for part in (str(tmp_path), f"process {first.pid} on {socket.gethostname()}", "since 2", "another --workdir"):
        assert part in str(caught.value), caught.value
    with holder(tmp_path) as (_, refused):
      assert refused == str(caught.value)
    (tmp_path / "another").mkdir()
    with lock.hold(tmp_path / "another"):  # another folder is free
      pass
    first.communicate("")
  with lock.hold(tmp_path), holder(tmp_path) as (_, refused):
    assert f"process {os.getpid()} on" in refused


def test_a_killed_process_releases_the_lock(tmp_path):
  with holder(tmp_path) as (process, word):
    assert word == "held"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock.hold(tmp_path):
      pass


def test_errors_in_the_block_release_the_lock(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyError), lock.hold(tmp_path):
      raise KeyError
  assert [path.name for path in tmp_path.iterdir()] == [lock.FILE_NAME]


@pytest.mark.parametrize("written", ["{", '{"pid": 3}', "\x00" * 9])
def test_lock_files_without_a_holder(tmp_path, written):
  with filelock.FileLock(tmp_path / lock.FILE_NAME):
    (tmp_path / lock.FILE_NAME).write_text(written)
    with pytest.raises(lock.LockedError, match=f"^{tmp_path} is in use by another run; wait"), lock.hold(tmp_path):
      pytest.fail("held twice")
  with lock.hold(tmp_path):
    assert f'"pid": {os.getpid()}' in (tmp_path / lock.FILE_NAME).read_text()


def test_an_empty_lock_is_used_and_stays_empty(tmp_path):
  """Checks that a lock that another program may have made is not written to."""
  (tmp_path / lock.FILE_NAME).touch()
  with lock.hold(tmp_path), pytest.raises(lock.LockedError, match="in use"), lock.hold(tmp_path):
    pytest.fail("held twice")
  assert (tmp_path / lock.FILE_NAME).read_bytes() == b""


@pytest.mark.parametrize("make", [
  lambda path: path.write_text("[1]"), lambda path: path.write_text("mine"), lambda path: path.mkdir(), os.mkfifo,
  lambda path: path.symlink_to("nothing"), lambda path: path.symlink_to("victim"),
  lambda path: path.symlink_to(".lock"), lambda path: os.link(path.parent / "victim", path)],
  ids=["JSON", "text", "folder", "pipe", "dangling link", "link", "loop", "hard link"])
def test_what_is_no_lock_of_a_run(tmp_path, make):
  (tmp_path / "victim").write_text("{")
  make(tmp_path / lock.FILE_NAME)
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(lock.LockedError, match="is in the way: it is no lock"), lock.hold(tmp_path):
    pytest.fail("held")
  assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "victim").read_text() == "{"


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_file_systems_without_locks(tmp_path, monkeypatch, capsys, error):
  def refuse(*_, **__):
    raise error

  monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
  ran = []
  with lock.hold(tmp_path):
    ran.append(True)
  assert ran and capsys.readouterr().out == (
    f"note: the file system of {tmp_path} has no locks, so nothing keeps a second run out of it\n")


def test_a_read_only_folder_raises_the_system_error(tmp_path, monkeypatch):
  """Expects the system's error, not LockedError."""
  refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / lock.FILE_NAME))

  def refuse(*_, **__):
    raise refused

  monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
  with pytest.raises(PermissionError) as caught, lock.hold(tmp_path):
    pytest.fail("held")
  assert caught.value is refused
  monkeypatch.undo()
  with pytest.raises(OSError, match="/proc/.lock"), lock.hold("/proc"):
    pytest.fail("held")
