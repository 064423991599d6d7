"""The study's page: one HTML file with everything inside, in the look of a run's report."""
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
<p>Every estimator is given a perfect network: the data are mixtures of Gaussians, for which the noise in an image can
be told exactly, under a label and without one. What is seen here is therefore the estimator's own doing, and no
network's. All run with the same guidance, and each with the weight w(t) and the range of t that its source has
published, but for five ranges: those of <code>csd</code>, <code>bridge</code>, <code>vsd</code> and <code>ism</code>
come down in the course of a published run, and stay as they are here (the first of the range, of <code>ism</code> the
last), since a particle has no coarse stage and no fine one; <code>rfds</code> has the range of SDS, so that its weight
alone tells the two apart.</p>
<p><b>Bias</b>: 1 minus the cosine between the expected gradient and the exact gradient of the divergence of the noisy
image from the noisy data; each t counts by what it contributes, and no weight turns a direction. SDS has none by
construction. <b>Relative variance</b>: variance over squared mean. <b>End</b>: the data are N(1, 0.3), what the null
label knows N(0, 0.3); SDS rests at 1 + omega, which is its over-saturation. <b>Near a mode</b>, <b>modes</b>,
<b>width</b>, <b>spread</b>: of particles in
the plane without guidance, against the law that they should be draws of (width and spread: 1). Width counts points
between two modes as well, so that it means something only beside the third column. <i>Moving</i>: not at rest at
the end.</p>
"""


def page(every: dict[str, Measurements], summaries: dict[str, dict[str, Any]], style: str, byline: str,
         shapeworld: str) -> bytes:
  """The whole page.

  Args:
    every, summaries: of `suite.run` and `suite.summary`, by name.
    style: CSS that the page begins with.
    byline: a line under the heading; text.
    shapeworld: a section of the page, HTML (`shapeworld_section`).

  Returns:
    HTML, UTF-8.

  Example: four sections of all estimators, and one of each.
    >>> every = dict(sds=suite.run("sds", suite.Sizes(particles=4, steps=200, draws=4, grid=2, times=2)))
    >>> text = page(every, dict(sds=suite.summary(every["sds"])), "", "1 estimator in 5 s", "").decode()
    >>> print(text.count("<section"), text.count("<img"), "https:" in text)
    5 4 False
  """
  contents = "".join(f'<a href="#{name}"><code>{name}</code></a>' for name in every)
  sections = [
    section("What is compared", INTRODUCTION + f"<nav>{contents}</nav>"),
    section("In numbers", wide_table(suite.table(summaries)) + image(figures.all_numbers(summaries), "Bars")),
    section("Where particles end", image(figures.all_ends(every), "End points of every estimator"),
            "grey dots: where they began; shades: what is wanted; rings: the other label"),
    section("Guidance", image(figures.all_guidance(every), "End points against guidance"), "hollow: still moving"),
    shapeworld, *(_of_estimator(name, found) for name, found in every.items())]
  template = resources.files("sds_jax.testbed").joinpath("study_template.html").read_text(encoding="utf-8")
  values = dict(style=style, byline=html.escape(byline), body="\n".join(sections))
  return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template).encode("utf-8")


def shapeworld_section(table: str, columns: dict[str, list[float]], names: list[str]) -> str:
  """The section of runs in three dimensions: a Markdown table, and bars of some of its columns.

  Args:
    table: of `evaluation.estimators.table`.
    columns: title -> one number for each of `names`.

  >>> body = shapeworld_section("| a |\\n|---|\\n| 0.8 |", dict(IoU=[0.8]), ["sds"])
  >>> print("<td>0.8</td>" in body, body.count("<img"))
  True 1
  """
  return section("The same estimators in three dimensions", wide_table(table)
                 + image(figures.bars(names, columns), "Scores of every estimator"), "ShapeWorld, the prior that ships")


def missing_section(command: str) -> str:
  """What stands in its place where there are no records.

  Args:
    command: what makes them; text.

  >>> print("them: <code>make &gt; here</code>" in missing_section("make > here"))
  True
  """
  return section("The same estimators in three dimensions",
                 f"<p>There are no records of runs yet. This makes them: <code>{html.escape(command)}</code></p>")


def section(title: str, body: str, note: str = "", anchor: str = "") -> str:
  """A card of the page; title and note are text, body is HTML.

  >>> print(section("Bias & noise", "<p>None.</p>", "against t", anchor="sds"))
  <section id="sds"><h2>Bias &amp; noise <small>against t</small></h2><p>None.</p></section>
  """
  small = f" <small>{html.escape(note)}</small>" if note else ""
  where = f' id="{anchor}"' if anchor else ""
  return f"<section{where}><h2>{html.escape(title)}{small}</h2>{body}</section>"


def image(figure: Any, words: str) -> str:
  """A figure (of matplotlib) with its description, which is text, inside the page; HTML.

  >>> print(image(figures.new(1, 1, 1.0, 1.0)[0], "x < y").split()[-3:])
  ['alt="x', '&lt;', 'y"></div>']
  """
  return f'<div class="scroll"><img class="sheet" src="{figures.data_uri(figure)}" alt="{html.escape(words)}"></div>'


def wide_table(markdown: str) -> str:
  """A Markdown table as HTML; `code` in cells stays code.

  >>> print(wide_table("| name |\\n|---|\\n| `sds` |"))
  <div class="wide"><table><tr><th>name</th></tr><tr><td><code>sds</code></td></tr></table></div>
  """
  lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.strip().splitlines()]
  cell = lambda text: re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))  # noqa: E731
  head = "".join(f"<th>{cell(text)}</th>" for text in lines[0])
  rows = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in line) + "</tr>" for line in lines[2:])
  return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _of_estimator(name: str, found: Measurements) -> str:
  """What it is, how it was run, and its figure."""
  first, *_ = ESTIMATORS[name].fn.__doc__.splitlines()
  setting = SETTINGS[name]
  ranges = f"t from {_scalar(setting.t_min)} to {_scalar(setting.t_max)}"
  if setting.t_min == setting.t_max:
    ranges = f"t {_scalar(setting.t_min)}, one for each moment of the run"
  note = f"w(t): {setting.weighting}; {ranges}" + (f" ({setting.warp})" if setting.warp != "linear" else "")
  return section(name, f"<p>{html.escape(first)} {html.escape(setting.note)}</p>" + image(
    figures.of_estimator(found), f"Field, end points, bias and guidance of {name}"), note, name)


def _scalar(spec: Any) -> str:
  """A constant, or the values that a schedule passes through."""
  return f"{spec:g}" if isinstance(spec, float) else "(" + " -> ".join(f"{value:g}" for _, value in spec) + ")"
