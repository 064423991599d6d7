"""Figures of the study, as PNG data inside a single HTML file.

Blue is without guidance, orange with guidance; grey shades are the density of the target law. matplotlib (extra
`study`) is imported on first use.
"""
from __future__ import annotations

import base64
import functools
import io
from typing import Any

import jax
import numpy as np

from sds_jax.testbed import laws, suite, toy_laws
from sds_jax.testbed.suite import Measurements

PLAIN, GUIDED, EXACT, FAINT = "#2a6fdb", "#d9730d", "#16191f", "#8b93a0"
COLOURS = ("#2a6fdb", "#d9730d", "#2f9e5b", "#b3361f", "#7a4fbf", "#8a6d3b", "#c2458f", "#5c6470", "#a3a51f", "#1798a6")


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, np.ndarray]:
  """Creates a figure without a window.

  Args:
    rows, columns: of the axes.
    width, height: inches.
    **options: arguments of matplotlib's `Figure.subplots`.

  Returns:
    figure, axes [rows, columns].

  >>> figure, axes = new_figure(1, 2, 4.0, 3.0)
  >>> print(figure.get_size_inches(), axes.shape)
  [4. 3.] (1, 2)
  """
  # matplotlib is optional and slow to import. `Figure` without pyplot keeps no global state and needs no display.
  from matplotlib import rc_context
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  # A local style: the settings of the user stay unchanged.
  style = {"font.size": 9, "axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False,
           "axes.titlesize": 10, "axes.titlelocation": "left", "xtick.color": "#5c6470", "ytick.color": "#5c6470",
           "axes.linewidth": 0.8, "legend.frameon": False}
  with rc_context(style):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def data_uri(figure: Any, dots: int = 110) -> str:
  """Encodes a figure as a PNG data URI with `dots` per inch.

  >>> from PIL import Image
  >>> kind, _, data = data_uri(new_figure(1, 1, 2.0, 1.0)[0], dots=50).partition(",")
  >>> print(kind, Image.open(io.BytesIO(base64.b64decode(data))).size)
  data:image/png;base64 (100, 50)
  """
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=dots)
  return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def estimator_figure(measured: Measurements) -> Any:
  """Draws the four panels of an estimator.

  Field, end points, bias and noise, effect of guidance.

  Args:
    measured: result of `suite.run`.

  >>> figure = estimator_figure(suite.run("sds", suite.Sizes(particles=4, steps=200, draws=4, grid=2, times=2)))
  >>> print(len(figure.axes), figure.axes[3].get_legend_handles_labels()[1])
  4 ['closed form of SDS', 'end point', 'still moving']
  """
  figure, axes = new_figure(1, 4, 12.0, 3.3, width_ratios=(1, 1, 1.05, 1.05))
  _draw_field(axes[0, 0], measured)
  _draw_end_points(axes[0, 1], measured)
  axes[0, 1].set_title(f"End points of {len(measured['ends'])} particles")
  axes[0, 1].legend(loc="lower left", fontsize=7, handletextpad=0.2)
  _draw_curves(axes[0, 2], measured)
  _draw_guidance(axes[0, 3], measured)
  return figure


def end_points_figure(all_measured: dict[str, Measurements]) -> Any:
  """Draws the end points of every estimator, five to a row.

  Args:
    all_measured: name -> start, ends and guided_ends [N, 2] of `suite.run`.

  >>> cloud = dict(start=np.zeros((2, 2)), ends=np.ones((2, 2)), guided_ends=np.full((2, 2), 9.0))
  >>> figure = end_points_figure(dict.fromkeys(["sds", "csd", "nfsd", "vsd", "ism", "sdi"], cloud))
  >>> print(len(figure.axes), "panels, visible:", sum(axis.get_visible() for axis in figure.axes))
  10 panels, visible: 6
  """
  columns = min(5, len(all_measured))
  rows = -(-len(all_measured) // columns)  # rounded up
  figure, axes = new_figure(rows, columns, 12.0, 2.45 * rows + 0.3)
  for axis in axes.flat[len(all_measured):]:
    axis.set_visible(False)
  for axis, (name, measured) in zip(axes.flat, all_measured.items()):
    _draw_end_points(axis, measured)
    axis.set_title(name)
  axes.flat[0].legend(loc="lower left", fontsize=7, handletextpad=0.2)
  return figure


def guidance_figure(all_measured: dict[str, Measurements]) -> Any:
  """Draws the points of rest of all estimators over guidance.

  Args:
    all_measured: name -> rest and moving [O] of `suite.run`, at `suite.OMEGAS`.

  Example: lines with a common end share a label.
    >>> still = np.zeros(len(suite.OMEGAS))
    >>> figure = guidance_figure(dict(sds=dict(rest=1.0 + np.array(suite.OMEGAS), moving=still)))
    >>> print([text.get_text() for text in figure.axes[0].texts])
    ['1 + omega, sds', 'the data']
  """
  figure, axes = new_figure(1, 1, 11.0, 5.2)
  axis = axes[0, 0]
  omega = np.array(suite.OMEGAS)
  axis.plot(omega, 1.0 + omega, "--", color=EXACT, lw=1.4, zorder=1)
  labels = [(1.0 + omega[-1], "1 + omega", EXACT)]
  for i, (name, measured) in enumerate(all_measured.items()):
    # Ten colours, then the same colours with dotted lines.
    colour, style = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else ":"
    axis.plot(omega, measured["rest"], style, color=colour, lw=1.6)
    moving = measured["moving"] >= suite.STILL_MOVING
    axis.plot(omega[~moving], measured["rest"][~moving], "o", color=colour, ms=5)
    axis.plot(omega[moving], measured["rest"][moving], "o", mfc="white", mec=colour, ms=5)
    labels.append((float(measured["rest"][-1]), name, colour))
  _label_ends(axis, omega[-1], labels)
  # The data of `toy_laws.two_gaussians` are N(1, 0.3).
  axis.axhspan(0.7, 1.3, color="#dfe3e9", zorder=0)
  axis.text(5.0, 1.0, "the data", fontsize=8, color="#5c6470", va="center", ha="center")
  axis.set(xlabel="guidance omega (DreamFusion's convention)", ylabel="median end point", xlim=(-0.2, 13.0),
           xticks=omega)
  return figure


def _label_ends(axis: Any, x: float, labels: list[tuple[float, str, str]]) -> None:
  """Writes names beside the ends of lines.

  Names at nearly equal heights are joined.
  """
  # Two labels need about a thirtieth of the height of the axes.
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


def scores_figure(summaries: dict[str, dict[str, Any]]) -> Any:
  """Draws bars of the numbers of all estimators.

  Bias, relative variance, width and share of particles near a mode.

  Args:
    summaries: name -> result of `suite.summary`.

  >>> sds = dict(bias=0.0, relative_variance=0.04, width=0.22, near=1.0)
  >>> figure = scores_figure(dict(sds=sds, csd=dict(bias=0.2, relative_variance=0.11, width=10.3, near=0.0)))
  >>> print([text.get_text() for text in figure.axes[2].texts])  # widths; bars end at 2
  ['0.22', '10.30 (cut)']
  """
  figure, axes = new_figure(1, 4, 12.0, 0.27 * len(summaries) + 1.0, sharey=True)
  names = list(summaries)
  for axis, (key, title, limit) in zip(axes.flat, (
      ("bias", "bias (1 - cosine)", 1.0), ("relative_variance", "relative variance", 3.0),
      ("width", "width of a mode (data: 1)", 2.0), ("near", "share of particles near a mode", 1.0))):
    values = [summaries[name][key] for name in names]
    axis.barh(names, np.minimum(values, limit), color=PLAIN, height=0.66)
    for i, value in enumerate(values):
      # A cut bar keeps its true value as text.
      beyond = " (cut)" if value > limit else ""
      axis.text(min(value, limit) + 0.02 * limit, i, f"{value:.2f}{beyond}", va="center", fontsize=8)
    axis.set(title=title, xlim=(0.0, 1.22 * limit))
    axis.tick_params(axis="y", length=0)
  axes[0, 0].invert_yaxis()
  axes[0, 2].axvline(1.0, color=EXACT, lw=1, ls="--")
  return figure


def bars_figure(names: list[str], columns: dict[str, list[float]]) -> Any:
  """Draws a panel of horizontal bars for each column.

  Args:
    names: of the rows.
    columns: title -> a number for each name.

  >>> figure = bars_figure(["sds", "vsd"], {"silhouette IoU": [0.81, 0.79], "seconds a run": [30.0, 61.5]})
  >>> print([text.get_text().strip() for text in figure.axes[1].texts])
  ['30', '61.5']
  """
  figure, axes = new_figure(1, len(columns), 12.0, 0.27 * len(names) + 1.0, sharey=True)
  for axis, (title, values) in zip(axes.flat, columns.items()):
    axis.barh(names, values, color=PLAIN, height=0.66)
    for i, value in enumerate(values):
      axis.text(value, i, f" {value:.3g}", va="center", fontsize=8)
    axis.set(title=title, xlim=(0.0, 1.2 * max([*values, 1e-6])))
    axis.tick_params(axis="y", length=0)
  axes[0, 0].invert_yaxis()
  return figure


# Cached: every panel of a page shows the same two.
@functools.cache
def _density(label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns coordinates x [150] and y [130], and the density [130, 150] of a law of the plane."""
  x, y = np.linspace(-3.2, 6.2, 150), np.linspace(-4.0, 4.0, 130)
  points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
  # The log density needs s > 0; at a = 1, s = 0.01 the noise is invisible beside modes of std 0.25.
  log_density = jax.jit(jax.vmap(lambda law, p: laws.log_density(law, p, 1.0, 1e-2), in_axes=(None, 0)))
  return x, y, np.exp(np.asarray(log_density(toy_laws.law_of(toy_laws.plane(), label), points))).reshape(130, 150)


def _draw_density(axis: Any) -> None:
  """Draws the density of the target and the other law."""
  for label, colours, filled in ((toy_laws.TARGET, ("#e8ebf0", "#cfd5de", "#b2bbc8"), True),
                                 (toy_laws.OTHER, ("#c9ced6",), False)):
    x, y, values = _density(label)
    draw = axis.contourf if filled else axis.contour
    levels = values.max() * np.array([0.02, 0.2, 0.6, 1.01]) if filled else [values.max() * 0.1]
    draw(x, y, values, levels=levels, colors=colours)
  axis.set(xlim=(-3.2, 6.2), ylim=(-4.0, 4.0), aspect="equal", xticks=[], yticks=[])
  axis.spines[:].set_visible(False)


def _draw_field(axis: Any, measured: Measurements) -> None:
  """Draws arrows in the direction of a step."""
  _draw_density(axis)
  points, steps = measured["points"], -measured["field"]
  size = np.linalg.norm(steps, axis=1, keepdims=True)
  # Lengths are fourth roots, because fields span orders of magnitude.
  arrows = steps / np.maximum(size, 1e-12) * (size / max(size.max(), 1e-12)) ** 0.25
  axis.quiver(points[:, 0], points[:, 1], arrows[:, 0], arrows[:, 1], color=PLAIN, angles="xy", scale_units="xy",
              scale=2.2, width=0.005)
  axis.set(title="Expected step, no guidance", xlim=(-3.4, 4.0), ylim=(-3.6, 3.6))


def _draw_end_points(axis: Any, measured: Measurements) -> None:
  """Draws end points with and without guidance.

  Triangles at the edge mean points outside.
  """
  _draw_density(axis)
  # Slightly inside the limits of the axes, so that triangles are visible.
  low, high = np.array([-3.1, -3.9]), np.array([6.1, 3.9])
  axis.plot(*measured["start"].T, ".", ms=1.5, color=FAINT, alpha=0.5)
  for key, colour, label in (("guided_ends", GUIDED, f"omega = {suite.STRONG}"), ("ends", PLAIN, "no guidance")):
    outside = ((measured[key] < low) | (measured[key] > high)).any(1)
    shown = np.clip(measured[key], low, high)
    axis.plot(*shown[~outside].T, "o", ms=3.2, mew=0, color=colour, alpha=0.55, label=label)
    axis.plot(*shown[outside].T, ">", ms=4, mew=0, color=colour, alpha=0.55,
              label=None if (~outside).any() else f"{label} (beyond)")


def _draw_curves(axis: Any, measured: Measurements) -> None:
  """Draws error, direction error and noise over t."""
  curves = suite.curves_over_time(measured)
  for key, colour, style, label in (("noise", PLAIN, "-", "noise: deviation / mean"),
                                    ("error", GUIDED, "-", "error of the mean"),
                                    ("turned", EXACT, "--", "1 - cosine (turned)")):
    # Clipped to the logarithmic axis: exact estimators have error 0.
    axis.plot(measured["t"], np.clip(curves[key], 1.2e-4, 90.0), style, color=colour, lw=1.6, label=label)
  axis.set(yscale="log", ylim=(1e-4, 5e3), xlim=(0.0, 1.0), xlabel="t, fraction of the schedule",
           title="Bias and noise against t")
  axis.legend(loc="upper right", fontsize=8)


def _draw_guidance(axis: Any, measured: Measurements) -> None:
  """Draws points of rest over guidance."""
  omega, moving = np.array(suite.OMEGAS), measured["moving"] >= suite.STILL_MOVING
  axis.axhspan(0.7, 1.3, color="#dfe3e9", zorder=0)
  axis.plot(omega, 1.0 + omega, "--", color=EXACT, lw=1.2, label="closed form of SDS")
  axis.plot(omega, measured["rest"], "-", color=GUIDED, lw=1.6)
  axis.plot(omega[~moving], measured["rest"][~moving], "o", color=GUIDED, ms=5, label="end point")
  axis.plot(omega[moving], measured["rest"][moving], "o", mfc="white", mec=GUIDED, ms=5, label="still moving")
  axis.set(xlabel="guidance omega", title="End point (data: grey)",
           ylim=(min(-1.0, measured["rest"].min() - 1), max(12.0, measured["rest"].max() + 1)))
  axis.legend(loc="best", fontsize=8)
