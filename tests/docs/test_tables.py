"""Every table can be made from records and code, and the pages hold the newest."""
import re

import pytest


def test_pages_are_up_to_date():
  import generated_text
  stale = [path.relative_to(generated_text.ROOT).as_posix() for path in generated_text.changes()]
  assert stale == [], "run python docs/_ext/generated_text.py"


def test_an_old_table_is_replaced():
  import generated_text
  text = "before\n<!-- generated: drills -->\nold\n<!-- end: drills -->\nafter"
  new = generated_text.updated(text)
  assert "old" not in new and new.startswith("before\n<!-- generated: drills -->\n| ") and new.endswith("-->\nafter")
  assert generated_text.updated(new) == new


def test_every_table_has_rows_of_equal_length():
  import generated_text
  for name in generated_text.MAKERS:
    for table in re.findall(r"(?:^\|.*\|$\n?)+", generated_text.make(name), flags=re.MULTILINE):
      rows = table.strip().splitlines()
      assert len(rows) > 2 and len({row.count("|") for row in rows}) == 1, name


def test_every_table_is_on_a_page_and_every_place_is_closed():
  import generated_text
  used = set()
  for path in generated_text.pages():
    text = path.read_text(encoding="utf-8")
    used |= set(generated_text.names(text))
    assert len(re.findall("<!-- generated: ", text)) == len(generated_text.names(text)), path
  assert used == set(generated_text.MAKERS)


def test_the_command_prints_a_table(capsys):
  import result_tables
  result_tables.main(["step_times"])
  assert "| as drawn |" in capsys.readouterr().out
  with pytest.raises(KeyError):
    result_tables.main(["no_such_table"])
