"""Gives pages the tables that are made from the package: `{{ text_scores }}` in a page is one of them."""
from __future__ import annotations

import package_tables
import result_tables
from sphinx.application import Sphinx
from sphinx.config import Config


def fill(app: Sphinx, config: Config) -> None:
  """Writes the pages of settings, and puts every generated table into the substitutions of MyST."""
  package_tables.write_settings()
  tables = result_tables.TABLES | package_tables.TABLES
  config.myst_substitutions = {**config.myst_substitutions, **{name: make() for name, make in tables.items()}}


def setup(app: Sphinx) -> dict[str, bool]:
  """Registers the tables."""
  app.connect("config-inited", fill, priority=100)
  return dict(parallel_read_safe=True, parallel_write_safe=True)
