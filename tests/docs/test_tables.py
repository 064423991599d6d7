"""Every table of results can be made from the records, and README.md holds the newest."""
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_readme_is_up_to_date():
  import readme
  text = readme.README.read_text(encoding="utf-8")
  assert "<!-- table:" in text
  assert readme.updated(text) == text, "run python docs/_ext/readme.py"


def test_every_table_has_rows_of_equal_length():
  import package_tables
  import result_tables
  for name, make in (result_tables.TABLES | package_tables.TABLES).items():
    for table in re.findall(r"(?:^\|.*\|$\n?)+", make(), flags=re.MULTILINE):
      rows = table.strip().splitlines()
      assert len(rows) > 2 and len({row.count("|") for row in rows}) == 1, name


def test_every_table_is_on_a_page():
  import package_tables
  import result_tables
  pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
  used = set(re.findall(r"\{\{ (\w+) \}\}", pages)) | set(
      re.findall(r"<!-- table: (\w+) -->", (ROOT / "README.md").read_text(encoding="utf-8")))
  assert set(result_tables.TABLES | package_tables.TABLES) <= used


def test_the_command_prints_a_table(capsys):
  import result_tables
  result_tables.main(["step_times"])
  assert "| as drawn |" in capsys.readouterr().out
  with pytest.raises(KeyError):
    result_tables.main(["no_such_table"])
