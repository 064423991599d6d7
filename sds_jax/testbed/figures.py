"""Figures of the study, as PNG data for a page that needs no other file. matplotlib (extra `study`) comes in late.

Blue is without guidance, orange with it; grey shades are the density of what is wanted.
"""
from __future__ import annotations

import base64
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.testbed import laws, suite, toy_laws
from sds_jax.testbed.suite import Measurements

PLAIN, GUIDED, EXACT, FAINT = "#2a6fdb", "#d9730d", "#16191f", "#8b93a0"
COLOURS = ("#2a6fdb", "#d9730d", "#2f9e5b", "#b3361f", "#7a4fbf", "#8a6d3b", "#c2458f", "#5c6470", "#a3a51f", "#1798a6")


def new(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, np.ndarray]:
  """(figure, axes [rows, columns]) of this size in inches, plain and without a window.

  Args:
    options: of matplotlib's `Figure.subplots`.

  >>> figure, axes = new(1, 2, 4.0, 3.0)
  >>> print(figure.get_size_inches(), axes.shape)
  [4. 3.] (1, 2)
  """
  from matplotlib import rc_context
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  style = {"font.size": 9, "axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False,
           "axes.titlesize": 10, "axes.titlelocation": "left", "xtick.color": "#5c6470", "ytick.color": "#5c6470",
           "axes.linewidth": 0.8, "legend.frameon": False}
  with rc_context(style):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def data_uri(figure: Any, dots: int = 110) -> str:
  """The figure as a PNG in a data URI, `dots` to the inch.

  >>> from PIL import Image
  >>> kind, _, data = data_uri(new(1, 1, 2.0, 1.0)[0], dots=50).partition(",")
  >>> print(kind, Image.open(io.BytesIO(base64.b64decode(data))).size)
  data:image/png;base64 (100, 50)
  """
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=dots)
  return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def of_estimator(found: Measurements) -> Any:
  """Field, end points, bias and noise, and behaviour against guidance of one estimator; a figure.

  Args:
    found: of `suite.run`.

  >>> figure = of_estimator(suite.run("sds", suite.Sizes(particles=4, steps=200, draws=4, grid=2, times=2)))
  >>> print(len(figure.axes), figure.axes[3].get_legend_handles_labels()[1])
  4 ['closed form of SDS', 'end point', 'still moving']
  """
  figure, axes = new(1, 4, 12.0, 3.3, width_ratios=(1, 1, 1.05, 1.05))
  _field(axes[0, 0], found)
  _ends(axes[0, 1], found)
  axes[0, 1].set_title(f"Where {len(found['ends'])} particles end")
  axes[0, 1].legend(loc="lower left", fontsize=7, handletextpad=0.2)
  _against_t(axes[0, 2], found)
  _guidance(axes[0, 3], found)
  return figure


def all_ends(every: dict[str, Measurements]) -> Any:
  """End points of every estimator, small, five to a row; a figure.

  Args:
    every: name -> found; start, ends and guided_ends [N, 2] are drawn.

  >>> cloud = dict(start=np.zeros((2, 2)), ends=np.ones((2, 2)), guided_ends=np.full((2, 2), 9.0))
  >>> figure = all_ends(dict.fromkeys(["sds", "csd", "nfsd", "vsd", "ism", "sdi"], cloud))
  >>> print(len(figure.axes), "places, taken:", sum(axis.get_visible() for axis in figure.axes))
  10 places, taken: 6
  """
  columns = min(5, len(every))
  figure, axes = new(-(-len(every) // columns), columns, 12.0, 2.45 * -(-len(every) // columns) + 0.3)
  for axis in axes.flat[len(every):]:
    axis.set_visible(False)
  for axis, (name, found) in zip(axes.flat, every.items()):
    _ends(axis, found)
    axis.set_title(name)
  axes.flat[0].legend(loc="lower left", fontsize=7, handletextpad=0.2)
  return figure


def all_guidance(every: dict[str, Measurements]) -> Any:
  """Where each estimator comes to rest as guidance grows, all on the same axes; a figure.

  Args:
    every: name -> found; rest and moving [O] at `suite.OMEGAS` are drawn.

  Example: lines that end at one height have their names together.
    >>> still = np.zeros(len(suite.OMEGAS))
    >>> figure = all_guidance(dict(sds=dict(rest=1.0 + np.array(suite.OMEGAS), moving=still)))
    >>> print([text.get_text() for text in figure.axes[0].texts])
    ['1 + omega, sds', 'the data']
  """
  figure, axes = new(1, 1, 11.0, 5.2)
  axis = axes[0, 0]
  omega = np.array(suite.OMEGAS)
  axis.plot(omega, 1.0 + omega, "--", color=EXACT, lw=1.4, zorder=1)
  labels = [(1.0 + omega[-1], "1 + omega", EXACT)]
  for i, (name, found) in enumerate(every.items()):
    colour, style = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else ":"
    axis.plot(omega, found["rest"], style, color=colour, lw=1.6)
    still = found["moving"] >= suite.STILL_MOVING
    axis.plot(omega[~still], found["rest"][~still], "o", color=colour, ms=5)
    axis.plot(omega[still], found["rest"][still], "o", mfc="white", mec=colour, ms=5)
    labels.append((float(found["rest"][-1]), name, colour))
  _label_ends(axis, omega[-1], labels)
  axis.axhspan(0.7, 1.3, color="#dfe3e9", zorder=0)
  axis.text(5.0, 1.0, "the data", fontsize=8, color="#5c6470", va="center", ha="center")
  axis.set(xlabel="guidance omega (DreamFusion's convention)", ylabel="median end point", xlim=(-0.2, 13.0),
           xticks=omega)
  return figure


def _label_ends(axis: Any, x: float, labels: list[tuple[float, str, str]]) -> None:
  """Names beside the lines' ends; those of lines that end at about the same height stand together."""
  gap = max(max(y for y, _, _ in labels) - min(y for y, _, _ in labels), 1.0) / 30.0
  groups: list[list[tuple[float, str, str]]] = []
  for label in sorted(labels):
    if groups and label[0] - groups[-1][-1][0] < gap:
      groups[-1].append(label)
    else:
      groups.append([label])
  for group in groups:
    names = [name for _, name, _ in group]
    text = ",\n".join(", ".join(names[i:i + 4]) for i in range(0, len(names), 4))
    colour = group[0][2] if len(group) == 1 else EXACT
    axis.text(x + 0.25, float(np.mean([y for y, _, _ in group])), text, color=colour, fontsize=9, va="center")


def all_numbers(summaries: dict[str, dict[str, Any]]) -> Any:
  """Bars of bias, relative variance, width and share of particles near a mode; a figure.

  Args:
    summaries: name -> that of `suite.summary`.

  >>> sds = dict(bias=0.0, relative_variance=0.04, width=0.22, near=1.0)
  >>> figure = all_numbers(dict(sds=sds, csd=dict(bias=0.2, relative_variance=0.11, width=10.3, near=0.0)))
  >>> print([text.get_text() for text in figure.axes[2].texts])  # widths; bars end at 2
  ['0.22', '10.30 (cut)']
  """
  figure, axes = new(1, 4, 12.0, 0.27 * len(summaries) + 1.0, sharey=True)
  names = list(summaries)
  for axis, (key, title, limit) in zip(axes.flat, (
      ("bias", "bias (1 - cosine)", 1.0), ("relative_variance", "relative variance", 3.0),
      ("width", "width of a mode (data: 1)", 2.0), ("near", "share of particles near a mode", 1.0))):
    values = [summaries[name][key] for name in names]
    axis.barh(names, np.minimum(values, limit), color=PLAIN, height=0.66)
    for i, value in enumerate(values):
      beyond = " (cut)" if value > limit else ""
      axis.text(min(value, limit) + 0.02 * limit, i, f"{value:.2f}{beyond}", va="center", fontsize=8)
    axis.set(title=title, xlim=(0.0, 1.22 * limit))
    axis.tick_params(axis="y", length=0)
  axes[0, 0].invert_yaxis()
  axes[0, 2].axvline(1.0, color=EXACT, lw=1, ls="--")
  return figure


def bars(names: list[str], columns: dict[str, list[float]]) -> Any:
  """One panel of horizontal bars for each column, a row for each name; a figure.

  Args:
    columns: title -> one number for each of `names`.

  >>> figure = bars(["sds", "vsd"], {"silhouette IoU": [0.81, 0.79], "seconds a run": [30.0, 61.5]})
  >>> print([text.get_text().strip() for text in figure.axes[1].texts])
  ['30', '61.5']
  """
  figure, axes = new(1, len(columns), 12.0, 0.27 * len(names) + 1.0, sharey=True)
  for axis, (title, values) in zip(axes.flat, columns.items()):
    axis.barh(names, values, color=PLAIN, height=0.66)
    for i, value in enumerate(values):
      axis.text(value, i, f" {value:.3g}", va="center", fontsize=8)
    axis.set(title=title, xlim=(0.0, 1.2 * max([*values, 1e-6])))
    axis.tick_params(axis="y", length=0)
  axes[0, 0].invert_yaxis()
  return figure


def _density(axis: Any) -> None:
  """Shades of the wanted law, and the outline of the other one."""
  x = np.linspace(-3.2, 6.2, 150)
  y = np.linspace(-4.0, 4.0, 130)
  points = jnp.asarray(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), jnp.float32)
  for label, colours, filled in ((toy_laws.TARGET, ("#e8ebf0", "#cfd5de", "#b2bbc8"), True),
                                 (toy_laws.OTHER, ("#c9ced6",), False)):
    law = toy_laws.law_of(toy_laws.plane(), label)
    values = np.exp(np.asarray(jax.vmap(lambda p: laws.log_density(law, p, 1.0, 1e-2))(points))).reshape(130, 150)
    draw = axis.contourf if filled else axis.contour
    levels = values.max() * np.array([0.02, 0.2, 0.6, 1.01]) if filled else [values.max() * 0.1]
    draw(x, y, values, levels=levels, colors=colours)
  axis.set(xlim=(-3.2, 6.2), ylim=(-4.0, 4.0), aspect="equal", xticks=[], yticks=[])
  axis.spines[:].set_visible(False)


def _field(axis: Any, found: Measurements) -> None:
  """Arrows downhill, as long as the fourth root of what they are: fields span orders of magnitude."""
  _density(axis)
  points, push = found["points"], -found["field"]
  size = np.linalg.norm(push, axis=1, keepdims=True)
  arrows = push / np.maximum(size, 1e-12) * (size / max(size.max(), 1e-12)) ** 0.25
  axis.quiver(points[:, 0], points[:, 1], arrows[:, 0], arrows[:, 1], color=PLAIN, angles="xy", scale_units="xy",
              scale=2.2, width=0.005)
  axis.set(title="Expected step, no guidance", xlim=(-3.4, 4.0), ylim=(-3.6, 3.6))


def _ends(axis: Any, found: Measurements) -> None:
  """End points with and without guidance; those outside are drawn as triangles at the edge."""
  _density(axis)
  low, high = np.array([-3.1, -3.9]), np.array([6.1, 3.9])
  axis.plot(*found["start"].T, ".", ms=1.5, color=FAINT, alpha=0.5)
  for key, colour, label in (("guided_ends", GUIDED, f"omega = {suite.STRONG}"), ("ends", PLAIN, "no guidance")):
    outside = ((found[key] < low) | (found[key] > high)).any(1)
    shown = np.clip(found[key], low, high)
    axis.plot(*shown[~outside].T, "o", ms=3.2, mew=0, color=colour, alpha=0.55, label=label)
    axis.plot(*shown[outside].T, ">", ms=4, mew=0, color=colour, alpha=0.55,
              label=None if (~outside).any() else f"{label} (beyond)")


def _against_t(axis: Any, found: Measurements) -> None:
  """Error against the exact gradient, its direction, and noise."""
  curves = suite.curves_over_time(found)
  for key, colour, style, label in (("noise", PLAIN, "-", "noise: deviation / mean"),
                                    ("error", GUIDED, "-", "error of the mean"),
                                    ("turned", EXACT, "--", "1 - cosine (turned)")):
    axis.plot(found["t"], np.clip(curves[key], 1.2e-4, 90.0), style, color=colour, lw=1.6, label=label)
  axis.set(yscale="log", ylim=(1e-4, 5e3), xlim=(0.0, 1.0), xlabel="t, fraction of the schedule",
           title="Bias and noise against t")
  axis.legend(loc="upper right", fontsize=8)


def _guidance(axis: Any, found: Measurements) -> None:
  """Where particles rest as guidance grows, beside SDS's closed form."""
  omega, still = np.array(suite.OMEGAS), found["moving"] >= suite.STILL_MOVING
  axis.axhspan(0.7, 1.3, color="#dfe3e9", zorder=0)
  axis.plot(omega, 1.0 + omega, "--", color=EXACT, lw=1.2, label="closed form of SDS")
  axis.plot(omega, found["rest"], "-", color=GUIDED, lw=1.6)
  axis.plot(omega[~still], found["rest"][~still], "o", color=GUIDED, ms=5, label="end point")
  axis.plot(omega[still], found["rest"][still], "o", mfc="white", mec=GUIDED, ms=5, label="still moving")
  axis.set(xlabel="guidance omega", title="End point (data: grey)",
           ylim=(min(-1.0, found["rest"].min() - 1), max(12.0, found["rest"].max() + 1)))
  axis.legend(loc="best", fontsize=8)
