"""Writes the tables of README.md from the records: `python docs/_ext/readme.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is one of `result_tables.TABLES`.
"""
from __future__ import annotations

import re
from pathlib import Path

import result_tables

README = Path(__file__).parents[2] / "README.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def updated(text: str) -> str:
  """Returns the text of README.md with its tables made anew."""
  return _TABLE.sub(lambda found: f"{found[1]}{result_tables.TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
  """Rewrites README.md."""
  README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
  main()
