"""Folders for runs that hold files, links and pipes of others, for the fuzz drill."""
from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], object]


def _file(text: str = "precious") -> Make:
  return lambda path: path.write_text(text, encoding="utf-8")


def _link(target: str) -> Make:
  return lambda path: path.symlink_to(target)


def _hard_link(path: Path) -> None:
  # A second name of the try's own `file`, which a write in place would change.
  os.link(path.parents[1] / "file", path)


_ANY = (
    "config.json", "metrics.jsonl", "timings.json", "scores.json", "report.html", "renders.png", "mesh.glb", "mesh.obj",
    "turntable.mp4", "turntable.gif", "image.png", "image_large.png", "input.png", "picture.json", "reference.png",
    "original.png", "files.jsonl", ".lock", "progress", "checkpoints", "Report.HTML", "CONFIG.JSON", "Input.Png")
_KINDS: dict[str, Make] = {
    "file": _file(), "empty": _file(""), "JSON": _file('{"original": "../file", "config": {}}'),
    "link": _link("../file"), "dangling": _link("../nothing"), "loop": _link("loop"),
    "folder": lambda path: path.mkdir(), "pipe": os.mkfifo, "hard link": _hard_link}
_NESTED = {
    "progress/mine.png": _file(), "progress/000001.png": _file(), "checkpoints/1": lambda path: path.mkdir(),
    "checkpoints/1/state": _file(), "checkpoints/.deleted-1": lambda path: path.mkdir(),
    "checkpoints/1.orbax-checkpoint-tmp": lambda path: path.mkdir(), "checkpoints/model.ckpt": _file(),
    "another-run-0/config.json": _file("{}"), "another-run-0/progress/000001.png": _file(), "notes.txt": _file(),
    "events.out.tfevents.1700000000.host": _file(), "particle_1/mesh.glb": _file(), "rgba_1.png": _file()}
FOLDERS: dict[str, tuple[str, Make]] = {
    f"taken-{number}": case for number, case in enumerate(
        [(name, make) for name in _ANY for make in _KINDS.values()] + list(_NESTED.items()))}
"""Name of a folder -> (path within it, function that makes what lies there)."""


def write(here: Path, name: str) -> None:
  """Makes one of FOLDERS in `here`, which holds a file called `file`."""
  path, make = FOLDERS[name]
  place = here / name / path
  place.parent.mkdir(parents=True, exist_ok=True)
  make(place)


def digest(folder: Path) -> dict[Path, tuple[int, str]]:
  """Returns {path: (kind of file, SHA-256 or target)} of everything in a folder.

  Pipes are not opened.
  """
  found = {}
  for place, folders, files in os.walk(folder):
    for path in (Path(place) / name for name in (*folders, *files)):
      # `lstat`, so that a link is judged itself and not its target.
      mode = os.lstat(path).st_mode
      content = os.readlink(path) if stat.S_ISLNK(mode) else ""
      # Regular files only: opening a pipe would wait for a writer.
      if stat.S_ISREG(mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
      found[path] = (stat.S_IFMT(mode), content)
  return found
