"""Where the files of a prior are."""
from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a prior comes from.

  Attributes:
    name: the name, hub id or folder that was asked for.
    folder: the folder of its files; None for a prior with random weights, which has no files.
    repo: "owner/name" on the hub; "" for a folder that is not from the hub.
    revision: the commit on the hub, or "".
  """
  name: str
  folder: Path | None
  repo: str = ""
  revision: str = ""

  def as_dict(self) -> dict[str, str]:
    """Returns the fields as strings, for config.json."""
    return {**dataclasses.asdict(self), "folder": "random weights" if self.folder is None else str(self.folder)}

  def __str__(self) -> str:
    if self.folder is None:
      return f"random weights of {self.name}'s shapes, which know nothing: what comes of it is no object"
    return f"{self.repo} at {self.revision}" if self.repo else str(self.folder)
