"""Writes the tables of README.md and of the pages, from records and code: `python docs/_ext/generated_text.py`.

A table stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`, so that it is readable in the repository.
NAME is a key of `MAKERS`. The pages in `docs/reference/settings` are generated as a whole.
"""
from __future__ import annotations

import functools
import re
from pathlib import Path

import package_tables
import result_tables
import task_tables

ROOT = Path(__file__).parents[2]
MAKERS = result_tables.TABLES | package_tables.TABLES | task_tables.TABLES
"""Name -> function that makes the text."""

_PLACE = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


@functools.cache
def make(name: str) -> str:
  """Returns the generated text of a name."""
  return MAKERS[name]()


def pages() -> list[Path]:
  """Returns README.md and the pages that are written by hand."""
  written = package_tables.settings_pages()
  return [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path not in written)]


def names(text: str) -> list[str]:
  """Returns the names of the generated places in a page."""
  return [found[2] for found in _PLACE.finditer(text)]


def updated(text: str) -> str:
  """Returns the text of a page with its generated places made anew."""
  return _PLACE.sub(lambda found: f"{found[1]}{make(found[2])}\n{found[3]}", text)


def changes() -> dict[Path, str]:
  """Returns {page: new text} for all pages that are not up to date."""
  wanted = {path: updated(path.read_text(encoding="utf-8")) for path in pages()} | package_tables.settings_pages()
  return {path: text for path, text in wanted.items()
          if not path.is_file() or path.read_text(encoding="utf-8") != text}


def main() -> None:
  """Rewrites the pages that are not up to date, and prints their names."""
  for path, text in changes().items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
  main()
