"""The reference of all settings, for the documentation."""
from __future__ import annotations

from typing import Any

from sds_jax.schema import AUTO, SCHEDULED_FORM, describe
from sds_jax.settings.trees import TREES


_SCHEDULED = f"A *scheduled* number is {SCHEDULED_FORM} v, linear in between."


def reference_markdown(task: str) -> str:
  """Returns the settings of a task as a Markdown page.

  A group is a section, a setting a row with default, legal values and meaning.

  Args:
    task: a name in TREES.
  """
  settings = TREES[task]()
  lines = [f"# Settings of {task}", "", _paragraphs(type(settings).__doc__), "", _SCHEDULED, "", *_table_head()]
  rows = list(describe(settings))
  top = [row for row in rows if "." not in row.name and row.legal is not None]
  lines += [_row(row.name, row) for row in top]
  for group in (row for row in rows if row.legal is None):
    within = [row for row in rows if row.legal is not None and row.name.rpartition(".")[0] == group.name]
    lines += ["", f"## `{group.name}`", "", _paragraphs(_docstring(settings, group.name)), "", *_table_head()]
    lines += [_row(row.name, row) for row in within]
  return "\n".join(lines) + "\n"


def _table_head() -> list[str]:
  return ["| setting | default | legal values | meaning |", "|---|---|---|---|"]


def _row(name: str, row: Any) -> str:
  legal = row.legal.replace(SCHEDULED_FORM, "scheduled, values")
  cells = [f"`{name}`", f"`{row.default!r}`" if row.default != AUTO else f"`{AUTO}`", legal, row.meaning]
  # A bar would end the cell.
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _docstring(settings: Any, path: str) -> str:
  for name in path.split("."):
    settings = getattr(settings, name)
  return settings.__doc__ or ""


def _paragraphs(docstring: str | None) -> str:
  paragraphs = [" ".join(paragraph.split()) for paragraph in (docstring or "").split("\n\n")]
  return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
