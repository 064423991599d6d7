"""The settings files that ship with the package, found by name from any folder."""
from __future__ import annotations

import os
from pathlib import Path, PurePath

_PACKAGE = Path(__file__).resolve().parent
FOLDER = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
              _PACKAGE / "configs")
"""Folder of the shipped settings files: within the package where a wheel is installed, beside it in a checkout."""


MEANINGS = {"text": "an object from a sentence", "image": "an object from a photo",
            "image2d": "an image from a sentence"}
"""Name of a shipped settings file -> what it makes."""


def names() -> list[str]:
  """Lists the names of the shipped settings files.

  >>> names()
  ['image', 'image2d', 'text']
  """
  return sorted(path.stem for path in FOLDER.glob("*.py"))


def resolve(path: str) -> str:
  """Returns the path of the settings file that `--config` names.

  A file that exists is taken as it is. Otherwise `configs/text.py`, `configs/text`, `text.py` and `text` name the
  shipped file `text.py`. Any other path is returned unchanged, for the caller to report.

  Args:
    path: the value of `--config` before its first colon.

  >>> PurePath(resolve("text")).name, resolve("my_settings.py")
  ('text.py', 'my_settings.py')
  """
  parts = PurePath(path).parts
  # `os.path.isfile`, since `Path.is_file` raises for names that are too long.
  if os.path.isfile(path) or not parts or parts[:-1] not in ((), ("configs",)):
    return path
  name = parts[-1].removesuffix(".py")
  return str(FOLDER / f"{name}.py") if name in names() else path
