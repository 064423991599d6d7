"""Writes formulas as MathML, which browsers draw themselves: no script and no network."""
from __future__ import annotations

from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx


def _formula(latex: str, display: str) -> str:
  return latex2mathml.converter.convert(latex, display=display)


def visit_math(writer: Any, node: nodes.math) -> None:
  """Writes a formula within a line."""
  writer.body.append(_formula(node.astext(), "inline"))
  raise nodes.SkipNode


def visit_math_block(writer: Any, node: nodes.math_block) -> None:
  """Writes a formula on its own line."""
  writer.body.append(f'<div class="formula">{_formula(node.astext(), "block")}</div>')
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
  """Registers the writer of formulas."""
  app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
  app.config.html_math_renderer = "mathml"
  return dict(parallel_read_safe=True, parallel_write_safe=True)
