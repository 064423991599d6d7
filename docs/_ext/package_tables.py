"""Makes the tables of estimators and of settings from the code, as Markdown."""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from result_tables import markdown

from sds_jax import ESTIMATORS
from sds_jax.diffusion.estimators.base import NEEDS, Draw
from sds_jax.settings import TREES, reference_markdown

SETTINGS = Path(__file__).parents[1] / "reference" / "settings"


def _linked(paper: str) -> str:
  """Returns a paper with its arXiv id as a link."""
  return re.sub(r"\d{4}\.\d{5}", lambda found: f"[{found[0]}](https://arxiv.org/abs/{found[0]})", paper)


def estimator_table() -> str:
  """Every estimator with paper, residual, needs and network calls."""
  rows = [(f"`{name}`", _linked(record.paper), f"`{record.residual}`",
           "; ".join(words.words for need, words in NEEDS.items() if need in record.needs), record.calls)
          for name, record in ESTIMATORS.items()]
  return markdown(("name", "paper", "residual", "needs", "calls a step"), rows)


def estimator_options() -> str:
  """Every option of an estimator with its default, legal values and meaning."""
  rows = [(f"`{name}.{field.name}`", f"`{field.default!r}`", without_tags(field.metadata["legal"].describe()),
           without_tags(field.metadata["meaning"]))
          for name, record in ESTIMATORS.items() for field in dataclasses.fields(record.options)]
  return markdown(("option", "default", "legal values", "meaning"), rows)


def published_draws() -> str:
  """The published values of each estimator for the settings that are left open."""
  fields = [field.name for field in dataclasses.fields(Draw)]
  rows = [(f"`{name}`", *(f"`{getattr(record.published, field)}`" for field in fields), record.source)
          for name, record in ESTIMATORS.items() if record.published]
  return markdown(("name", *(f"`{field}`" for field in fields), "source"), rows)


def without_tags(text: str) -> str:
  """Returns Markdown with `<` outside code escaped, so that `<seed>` is no HTML."""
  parts = text.split("`")
  parts[::2] = [part.replace("<", "\\<") for part in parts[::2]]
  return "`".join(parts)


def write_settings() -> None:
  """Writes the reference of the settings of each task as a page of its own."""
  SETTINGS.mkdir(parents=True, exist_ok=True)
  for task in TREES:
    path, text = SETTINGS / f"{task}.md", without_tags(reference_markdown(task))
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
      path.write_text(text, encoding="utf-8")


TABLES = {make.__name__: make for make in (estimator_table, estimator_options, published_draws)}
"""Name -> function that makes the table."""
