"""The page of the study: a self-contained HTML file in the style of the report of a run."""
from __future__ import annotations

import html
import re
from importlib import resources
from typing import Any

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.testbed import figures, suite
from sds_jax.testbed.estimator_settings import SETTINGS
from sds_jax.testbed.suite import Measurements

INTRODUCTION = """
<p>Every estimator has a perfect network: the data are mixtures of Gaussians, and the expected noise in an image has a
closed form, under a label and under the null label. All effects on this page therefore come from the estimators, not
from a network. All estimators run with the same guidance, each with its published weight w(t) and its published range
of t, with five exceptions. Published runs lower the range of t for <code>csd</code>, <code>bridge</code>,
<code>vsd</code> and <code>ism</code>; here the range is constant (the first range, for <code>ism</code> the last),
because a particle has no coarse stage and no fine stage. <code>rfds</code> has the range of SDS, so that only the
weight separates the two.</p>
<p><b>Bias</b>: 1 minus the cosine between the expected gradient and the exact gradient of the divergence of the noisy
image from the noisy data, averaged over t by the size of the gradient; a weight w(t) changes no direction. SDS has no
bias by construction. <b>Relative variance</b>: variance over squared mean. <b>End</b>: the data are N(1, 0.3) and the
null label is N(0, 0.3); SDS rests at 1 + omega, its over-saturation. <b>Near a mode</b>, <b>modes</b>, <b>width</b>,
<b>spread</b>: particles in the plane without guidance, compared with draws of the target law (width and spread: 1).
Width also counts points between two modes, so read width together with the third column. <i>Moving</i>: not at rest
at the end.</p>
"""


def render_page(all_measured: dict[str, Measurements], summaries: dict[str, dict[str, Any]], style: str, byline: str,
                shapeworld: str) -> bytes:
  """Renders the whole page.

  Args:
    all_measured, summaries: name -> results of `suite.run` and `suite.summary`.
    style: CSS of the page.
    byline: a line under the heading; text.
    shapeworld: result of `shapeworld_section` or `missing_records_section`; HTML.

  Returns:
    HTML, UTF-8.

  Example: four sections on all estimators, and a section for each estimator.
    >>> measured = dict(sds=suite.run("sds", suite.Sizes(particles=4, steps=200, draws=4, grid=2, times=2)))
    >>> text = render_page(measured, dict(sds=suite.summary(measured["sds"])), "", "1 estimator in 5 s", "").decode()
    >>> print(text.count("<section"), text.count("<img"), "https:" in text)
    5 4 False
  """
  # Links inside the page; no link leaves the file.
  contents = "".join(f'<a href="#{name}"><code>{name}</code></a>' for name in all_measured)
  sections = [
    section("Comparison of the estimators", INTRODUCTION + f"<nav>{contents}</nav>"),
    section("Numbers", wide_table(suite.table(summaries)) + figure_html(figures.scores_figure(summaries), "Bars")),
    section("End points", figure_html(figures.end_points_figure(all_measured), "End points of every estimator"),
            "grey dots: starts; shades: the target law; rings: the other label"),
    section("Guidance", figure_html(figures.guidance_figure(all_measured), "End points against guidance"),
            "hollow: still moving"),
    shapeworld, *(_estimator_section(name, measured) for name, measured in all_measured.items())]
  template = resources.files("sds_jax.testbed").joinpath("study_template.html").read_text(encoding="utf-8")
  # A single pass over the template, so braces in the inserted text are never expanded.
  values = dict(style=style, byline=html.escape(byline), body="\n".join(sections))
  return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template).encode("utf-8")


def shapeworld_section(table: str, columns: dict[str, list[float]], names: list[str]) -> str:
  """Formats the section on runs in three dimensions.

  Args:
    table: result of `evaluation.estimators.table`, Markdown.
    columns: title -> a number for each of `names`.
    names: of the estimators.

  >>> body = shapeworld_section("| a |\\n|---|\\n| 0.8 |", dict(IoU=[0.8]), ["sds"])
  >>> print("<td>0.8</td>" in body, body.count("<img"))
  True 1
  """
  return section("The same estimators in three dimensions", wide_table(table)
                 + figure_html(figures.bars_figure(names, columns), "Scores of every estimator"),
                 "ShapeWorld, the shipped prior")


def missing_records_section(command: str) -> str:
  """Formats the section on runs in three dimensions without records.

  Args:
    command: a command creating the records; text.

  >>> print("with: <code>make &gt; here</code>" in missing_records_section("make > here"))
  True
  """
  return section("The same estimators in three dimensions",
                 f"<p>No records of runs exist yet. Create them with: <code>{html.escape(command)}</code></p>")


def section(title: str, body: str, note: str = "", anchor: str = "") -> str:
  """Formats a section of the page.

  Args:
    title, note: text, escaped here.
    body: HTML.
    anchor: id of the section, or "".

  >>> print(section("Bias & noise", "<p>None.</p>", "against t", anchor="sds"))
  <section id="sds"><h2>Bias &amp; noise <small>against t</small></h2><p>None.</p></section>
  """
  small = f" <small>{html.escape(note)}</small>" if note else ""
  attribute = f' id="{anchor}"' if anchor else ""
  return f"<section{attribute}><h2>{html.escape(title)}{small}</h2>{body}</section>"


def figure_html(figure: Any, description: str) -> str:
  """Embeds a matplotlib figure in HTML.

  Args:
    figure: of matplotlib.
    description: alternative text, escaped here.

  >>> print(figure_html(figures.new_figure(1, 1, 1.0, 1.0)[0], "x < y").split()[-3:])
  ['alt="x', '&lt;', 'y"></div>']
  """
  source, text = figures.data_uri(figure), html.escape(description)
  return f'<div class="scroll"><img class="sheet" src="{source}" alt="{text}"></div>'


def wide_table(markdown: str) -> str:
  """Converts a Markdown table with `code` to HTML.

  >>> print(wide_table("| name |\\n|---|\\n| `sds` |"))
  <div class="wide"><table><tr><th>name</th></tr><tr><td><code>sds</code></td></tr></table></div>
  """
  # The second line of a Markdown table separates the head and is dropped below.
  lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.strip().splitlines()]
  # Escaped before the backticks are replaced, so cells cannot contain HTML.
  cell = lambda text: re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))  # noqa: E731
  head = "".join(f"<th>{cell(text)}</th>" for text in lines[0])
  rows = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in line) + "</tr>" for line in lines[2:])
  return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _estimator_section(name: str, measured: Measurements) -> str:
  """Formats the section of an estimator: description, settings and figure."""
  # The first line of the docstring is the one-line description of the estimator.
  first, *_ = ESTIMATORS[name].fn.__doc__.splitlines()
  # Equal schedules for both ends mean a deterministic t.
  setting = SETTINGS[name]
  ranges = f"t from {_scalar(setting.t_min)} to {_scalar(setting.t_max)}"
  if setting.t_min == setting.t_max:
    ranges = f"t {_scalar(setting.t_min)}, a fixed t at each moment of the run"
  note = f"w(t): {setting.weighting}; {ranges}" + (f" ({setting.warp})" if setting.warp != "linear" else "")
  return section(name, f"<p>{html.escape(first)} {html.escape(setting.note)}</p>" + figure_html(
    figures.estimator_figure(measured), f"Field, end points, bias and guidance of {name}"), note, name)


def _scalar(spec: Any) -> str:
  """Formats a constant or the values of a schedule."""
  return f"{spec:g}" if isinstance(spec, float) else "(" + " -> ".join(f"{value:g}" for _, value in spec) + ")"
