"""Folders of priors that exist in memory only, composed of files elsewhere.

Families read a prior from a folder in diffusers' format. A single-file checkpoint becomes such a folder here: its
configurations and its tokenizer are texts in memory, and its weights are tensors of the file. A folder whose U-Net or
VAE is another file is one, too. A `Composed` has the part of `pathlib.Path`'s interface that the readers use.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import os
from pathlib import Path
from typing import Any

Find = Callable[[Iterable[str]], Mapping[str, Any]]
"""(names of a network's parameters in checkpoints) -> {name: `stored.Stored`} of all that the file has for the network;
tensors that belong to none of the names keep their names in the file."""


@dataclasses.dataclass(frozen=True)
class StoredWeights:
  """The weights of a network in a file that has them under other names.

  Attributes:
    file: the file.
    find: see `Find`.
    label: (name of a parameter) -> its name in the file, for messages.
  """
  file: Path
  find: Find
  label: Callable[[str], str] = str


@dataclasses.dataclass(frozen=True)
class Composed:
  """A path in a composed folder.

  Attributes:
    origin: the file or folder that was asked for; messages name it.
    entries: {path below the folder: its content, or the file or folder that has it}.
    weights: {component's folder: its weights}, of components whose weights are in a file with other names.
    base: the folder that has all other paths; None: there are none.
    notes: lines for the log.
    at: the path below the folder; "": the folder itself.
  """
  origin: Path
  entries: Mapping[str, bytes | Path]
  weights: Mapping[str, StoredWeights] = dataclasses.field(default_factory=dict)
  base: Path | Composed | None = None
  notes: tuple[str, ...] = ()
  at: str = ""

  def __truediv__(self, name: str) -> Composed | Path:
    """Returns the path of a name below; a `pathlib.Path` where the name is a real file or folder."""
    at, *rest = self.at, *name.split("/")
    here: Composed | Path = self
    while rest and isinstance(here, Composed):
      at = f"{here.at}/{rest[0]}" if here.at else rest[0]
      here, rest = here._child(at), rest[1:]
    for part in rest:
      here = here / part
    return here

  def _child(self, at: str) -> Composed | Path:
    entry = self.entries.get(at)
    if isinstance(entry, Path):
      return entry
    own = entry is not None or at in self.weights or any(name.startswith(f"{at}/") for name in self.entries)
    if own or self.base is None:
      return dataclasses.replace(self, at=at)
    return self.base / at

  def __str__(self) -> str:
    return f"{self.origin} ({self.at})" if self.at else str(self.origin)

  @property
  def name(self) -> str:
    """Returns the last part of the path."""
    return self.at.rsplit("/", 1)[-1] or self.origin.name

  @property
  def parent(self) -> Composed:
    """Returns the folder that the path is in."""
    return dataclasses.replace(self, at=self.at.rpartition("/")[0])

  @property
  def stored(self) -> StoredWeights | None:
    """Returns the weights of the component whose folder this is, or None."""
    return self.weights.get(self.at)

  def is_file(self) -> bool:
    """Returns whether the path has a content in memory."""
    return isinstance(self.entries.get(self.at), bytes)

  def is_dir(self) -> bool:
    """Returns whether the path is a folder."""
    return self.at in self.weights or bool(self._names())

  def exists(self) -> bool:
    """Returns whether the path is a file or a folder."""
    return self.is_file() or self.is_dir()

  def is_symlink(self) -> bool:
    """Returns False: there are no links in memory."""
    return False

  def resolve(self) -> Composed:
    """Returns the path itself."""
    return self

  def iterdir(self) -> Iterator[Composed | Path]:
    """Yields the paths in the folder."""
    yield from (self / name for name in sorted(self._names()))

  def _names(self) -> set[str]:
    """Returns the names in the folder."""
    prefix = f"{self.at}/" if self.at else ""
    names = {name[len(prefix):].split("/")[0] for name in (*self.entries, *self.weights)
             if name.startswith(prefix) and name != self.at}
    base = self.base / self.at if self.base is not None and self.at else self.base
    if isinstance(base, Composed):
      names |= base._names()
    elif base is not None and base.is_dir():
      names |= {path.name for path in base.iterdir()}
    return names

  def content(self) -> bytes:
    """Returns the content in memory.

    Raises:
      KeyError: the path is no file in memory.
    """
    return self.entries[self.at]


def as_folder(path: str | os.PathLike | Composed) -> Path | Composed:
  """Returns a composed folder itself, and anything else as `pathlib.Path`."""
  return path if isinstance(path, Composed) else Path(path)
