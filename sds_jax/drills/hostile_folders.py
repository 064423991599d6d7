"""What a hostile command line names: folders with files of others, spoilt runs and priors, photos, files of settings.

Each has a name that says how it is made, so that a command line can be repeated: `taken-3` holds the third of the
files of others, `prior-7` and `view_prior-7` are priors with the seventh mistake, `done-1-7` is the finished run
number 1 with the seventh mistake, `photo-7.png` a hostile photo, and `config-image2d-7.py` a hostile file of settings.
"""
from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from sds_jax.drills import hostile_configs, hostile_json, hostile_photos

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


_NAMED = re.compile(r"--[\w.]+=(?:(?P<taken>taken-\d+)|(?P<prior>prior|view_prior)-(?P<mistake>\d+)|"
                    r"done-(?P<run>\d)-(?P<fault>\d+)|(?P<photo>photo-\d+\.png)|(?P<file>config-(?P<job>\w+)-\d+\.py))")


def prepare(here: Path, scratch: Path, arguments: Iterable[str]) -> None:
  """Makes what a command line names.

  Args:
    here: working directory of the command; holds a file called `file`.
    scratch: holds the priors `prior` and `view_prior`, and in `done` finished runs called 0, 1, ...
    arguments: of the command line.
  """
  for match in filter(None, map(_NAMED.fullmatch, arguments)):
    name = match.group().partition("=")[2]
    place, rng = here / name, random.Random(name)
    if os.path.lexists(place):
      continue
    if match["taken"]:
      path, make = FOLDERS[name]
      (place / path).parent.mkdir(parents=True, exist_ok=True)
      make(place / path)
    elif match["prior"] or match["run"]:
      source = scratch / match["prior"] if match["prior"] else scratch / "done" / match["run"]
      shutil.copytree(source, place, symlinks=True)
      hostile_json.spoil_folder(place, rng)
    elif match["photo"]:
      hostile_photos.write(place, rng)
    else:
      hostile_configs.write(place, match["job"], rng)


def digest(folder: Path, skipped: Iterable[Path] = ()) -> dict[Path, tuple[int, str]]:
  """Returns {path: (kind of file, SHA-256 or target)} of everything in a folder but the skipped folders.

  Pipes are not opened.
  """
  found, skipped = {}, set(skipped)
  for place, folders, files in os.walk(folder):
    folders[:] = [name for name in folders if Path(place) / name not in skipped]
    for path in (Path(place) / name for name in (*folders, *files)):
      # `lstat`, so that a link is judged itself and not its target.
      mode = os.lstat(path).st_mode
      content = os.readlink(path) if stat.S_ISLNK(mode) else ""
      # Regular files only: opening a pipe would wait for a writer.
      if stat.S_ISREG(mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
      found[path] = (stat.S_IFMT(mode), content)
  return found
