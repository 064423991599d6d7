"""What a user types and sees: paths with `~`, and text that a terminal cannot show."""
from __future__ import annotations

import sys
from pathlib import Path


def show_any_text() -> None:
  """Lets stdout and stderr write characters that their encoding lacks as escapes.

  By default Python raises UnicodeEncodeError, for example for a prompt in another script where the encoding is cp1252.
  """
  for stream in (sys.stdout, sys.stderr):
    if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")


def user_path(text: str) -> Path:
  """Returns a path of the command line with the home folder in place of `~`.

  No shell expands `~` behind `=`.

  Raises:
    ValueError: the home folder is not known.
  """
  try:
    return Path(text).expanduser()
  except RuntimeError as error:
    raise ValueError(f"{text!r}: {error}") from error
