"""Prepares docstrings, which are plain text with backticks, for Sphinx, which reads reStructuredText.

Outside backticks nothing is markup, and an indented block that belongs to no section ("Args:" and so on) and to no
list is shown as written.
"""
from __future__ import annotations

import re

from sphinx.application import Sphinx

_SPECIAL = re.compile(r"(?<!\\)(\*|\||(?<=\w)_(?!\w))")
_SECTION = re.compile(r"^[A-Z]\w*( \w+)?:$")
_LIST_ITEM = re.compile(r"^([-*]|\d+\.) ")


def plain(line: str) -> str:
  """Escapes what reStructuredText would read as markup outside backticks."""
  parts = line.split("`")
  parts[::2] = [_SPECIAL.sub(r"\\\1", part) for part in parts[::2]]
  return "`".join(parts)


def convert(lines: list[str]) -> list[str]:
  """Returns the lines of a docstring as reStructuredText with Google's sections."""
  result: list[str] = []
  kind = "text"  # of the last line that was not indented: text, section or list
  as_written = False
  for line in lines:
    if not line.strip():
      result.append(line)
      continue
    indented = line.startswith(" ")
    if not indented:
      if as_written and result[-1].strip():
        result.append("")
      as_written = False
      kind = "section" if _SECTION.match(line) else "list" if _LIST_ITEM.match(line) else "text"
    elif kind == "text" and not as_written:
      as_written = True
      result += [] if not result or not result[-1].strip() else [""]
      if not line.lstrip().startswith(">>>"):
        result += ["::", ""]
    code = as_written or line.lstrip().startswith((">>>", "..."))
    result.append(line if code else plain(line))
  return result


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
  """Changes the lines of a docstring in place, before napoleon reads its sections."""
  lines[:] = convert(lines)


def setup(app: Sphinx) -> dict[str, bool]:
  """Registers the change of docstrings."""
  app.connect("autodoc-process-docstring", process, priority=100)
  return dict(parallel_read_safe=True, parallel_write_safe=True)
