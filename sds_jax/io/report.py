"""The report of a finished run: a single HTML file with the turning object, for offline use."""
from __future__ import annotations

import base64
import datetime
import html
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from sds_jax.io.files import atomic_write, to_jsonable

if TYPE_CHECKING:
  import trimesh

CURVE_POINTS = 400
_MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
_FILES = ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", "mesh.stl", "turntable.mp4", "turntable.gif",
          "renders.png", "config.json", "metrics.jsonl")


def write_report(folder: str | os.PathLike, prompt: str, *, mesh: trimesh.Trimesh | None = None,
                 turntable: str | os.PathLike | None = None, renders: str | os.PathLike | None = None,
                 renders_note: str = "", metrics: Sequence[Mapping[str, Any]] = (),
                 config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None,
                 versions: Mapping[str, str] | None = None, scores: Mapping[str, Any] | None = None,
                 comparison: str | os.PathLike | None = None) -> Path:
  """Writes folder/report.html; returns the path. Atomic.

  Arguments that are None or empty have no section. The file holds all media (as base64), styles and scripts, and the
  content security policy of the page blocks the network; only the links to files in `folder` point outside the page.
  Text is escaped: prompts are data.

  Args:
    folder: the run's folder.
    prompt: title of the page.
    mesh: in world coordinates, with vertex colours (`extract_mesh`); shown in a WebGL viewer.
    turntable: .mp4 or .gif (`write_turntable`).
    renders: .png, shown with the caption `renders_note`.
    metrics: records of `read_metrics`; every numeric key but "step" becomes a curve with at most CURVE_POINTS points.
    config: settings, possibly nested, shown with dotted names.
    timings: seconds for keys ending in _s.
    versions: name -> version.
    scores: a few numbers, shown large.
    comparison: .png, the input photo beside the object.
  """
  folder = Path(folder)
  curves = metric_curves(metrics)
  sections = [_hero(mesh, turntable),
              _sheet("Input photo", "the photo, and the object from the same side", comparison,
                     "The photo and the object from the same side", "beside"),
              _sheet("Renders", renders_note, renders, "The object from several sides"),
              _scores(scores), _curves(curves), _tables(timings, versions), _config(config)]
  # Data goes into a JSON element and not into the scripts, so that no text is ever executed.
  data = json.dumps({"mesh": None if mesh is None else pack_mesh(mesh), "curves": curves}, separators=(",", ":"))
  page = _fill(_read("report_template.html"), {
    "title": html.escape(prompt.strip() or "(no prompt)"),
    "byline": _byline(folder, metrics),
    "body": "\n".join(filter(None, sections)),
    "style": _read("report.css"),
    "viewer": _read("viewer.js"),
    "charts": _read("report.js"),
    "data": data.replace("<", "\\u003c"),  # no text may close the script element
  })
  with atomic_write(folder / "report.html") as file:
    file.write(page.encode("utf-8", "replace"))  # a prompt may hold lone surrogates
  return folder / "report.html"


def pack_mesh(mesh: trimesh.Trimesh) -> dict[str, Any]:
  """Packs a mesh as base64 for viewer.js.

  Positions are uint16 fractions of the box [low, high], normals int8, RGB uint8, faces uint32; all are little-endian.
  """
  low, high = np.asarray(mesh.bounds, np.float64)
  radius = np.linalg.norm(mesh.vertices - 0.5 * (low + high), axis=1).max()
  # The floor is for a flat mesh, whose box has a side of length 0.
  fractions = (mesh.vertices - low) / np.maximum(high - low, 1e-9)
  return {
    "low": low.tolist(),
    "high": high.tolist(),
    "radius": float(radius),
    # 16 bits: at most 1/131070 of the box's side off, and a quarter the size of float64.
    "positions": _base64(np.rint(fractions * 65535.0).astype("<u2")),
    # 127, the largest int8; 128 would wrap to -128.
    "normals": _base64(np.rint(mesh.vertex_normals * 127.0).astype("i1")),
    "colours": _base64(np.asarray(mesh.visual.vertex_colors)[:, :3].astype("u1")),
    "faces": _base64(np.asarray(mesh.faces).astype("<u4")),
  }


def metric_curves(metrics: Sequence[Mapping[str, Any]], points: int = CURVE_POINTS) -> list[dict[str, Any]]:
  """Returns a curve for every numeric key of the records.

  A curve is {"name", "steps", "values"}. Curves are thinned to `points` points; values that are not finite become None.
  """
  # A dictionary and no set, to keep the order of the records.
  names = dict.fromkeys(key for record in metrics for key in record if key != "step")
  curves = []
  for name in names:
    pairs = [(r["step"], to_jsonable(r[name])) for r in metrics if name in r]
    if not all(v is None or _is_number(v) for _, v in pairs) or all(v is None for _, v in pairs):
      continue
    # linspace keeps the first and the last point; unique drops repeats from rounding.
    thinned = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(points, len(pairs))).round().astype(int))]
    steps, values = zip(*thinned)
    if any(v is not None for v in values):
      curves.append({"name": _label(name), "steps": list(steps), "values": list(values)})
  return curves


def _hero(mesh: trimesh.Trimesh | None, turntable: str | os.PathLike | None) -> str:
  cards = []
  if mesh is not None:
    size = f"{len(mesh.faces):,} triangles · drag to rotate, scroll to zoom"
    cards.append(f'<section><h2>Mesh <small>{size}</small></h2><div class="stage"><canvas id="viewer" tabindex="0" '
                 'role="img" aria-label="Mesh; drag or use the arrow keys to rotate"></canvas></div></section>')
  if turntable is not None:
    source = _data_url(turntable)
    media = (f'<video id="turntable" src="{source}" loop autoplay muted playsinline></video>'
             if source.startswith("data:video") else f'<img id="turntable" src="{source}" alt="The rotating object">')
    cards.append('<section><h2>Turntable <small>rendered from the field</small></h2>'
                 f'<div class="stage">{media}</div></section>')
  return f'<div class="hero">{"".join(cards)}</div>' if cards else ""


def _sheet(title: str, note: str, path: str | os.PathLike | None, alt: str, style: str = "sheet") -> str:
  if path is None:
    return ""
  return (f'<section><h2>{title} <small>{html.escape(note)}</small></h2>'
          f'<div class="scroll"><img class="{style}" src="{_data_url(path)}" alt="{alt}"></div>'
          '</section>')


def _scores(scores: Mapping[str, Any] | None) -> str:
  if not scores:
    return ""
  tiles = "".join(f"<div><dt>{html.escape(_label(k))}</dt><dd>{html.escape(_text(v))}</dd></div>"
                  for k, v in to_jsonable(scores).items())
  return f'<section><h2>Scores</h2><dl class="scores">{tiles}</dl></section>'


def _curves(curves: list) -> str:
  return '<section><h2>Training</h2><div class="curves" id="curves"></div></section>' if curves else ""


def _tables(timings: Mapping[str, float] | None, versions: Mapping[str, str] | None) -> str:
  cards = [f"<section><h2>{title}</h2>{_table(rows)}</section>" for title, rows in (
    ("Timings", {_label(k.removesuffix("_s")): _duration(v) if k.endswith("_s") else v
                 for k, v in to_jsonable(timings or {}).items()}),
    ("Versions", versions or {})) if rows]
  return f'<div class="tables">{"".join(cards)}</div>' if cards else ""


def _config(config: Mapping[str, Any] | None) -> str:
  if not config:
    return ""
  rows = _table(dict(_flatten(to_jsonable(config))))
  return f'<section><details><summary>Configuration</summary><div class="columns">{rows}</div></details></section>'


def _byline(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
  parts = [f"{datetime.datetime.now():%d %B %Y, %H:%M}".lstrip("0")]
  if metrics:
    parts.append(f"{metrics[-1]['step']:,} steps")
  parts += [f'<a href="{name}">{name}</a>' for name in _FILES if (folder / name).exists()]
  return " · ".join(parts)


def _table(rows: Mapping[str, Any]) -> str:
  return "<table>" + "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(_text(v))}</td></tr>"
                             for k, v in rows.items()) + "</table>"


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _fill(template: str, values: Mapping[str, str]) -> str:
  """Replaces every {{name}} of a template."""
  # In a single pass, so that a value with a placeholder in the text stays unchanged.
  return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _read(name: str) -> str:
  return resources.files("sds_jax.io").joinpath(name).read_text(encoding="utf-8").rstrip()


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _data_url(path: str | os.PathLike) -> str:
  path = Path(path)
  return f"data:{_MEDIA[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _is_number(value: Any) -> bool:
  # bool is a subclass of int, and flags are no curves.
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label(name: str) -> str:
  return name.replace("_", " ").replace("/", " · ")


def _text(value: Any) -> str:
  if value is None:
    return "–"
  if isinstance(value, float):
    return f"{value:.4g}"
  return ", ".join(_text(v) for v in value) if isinstance(value, (list, tuple)) else str(value)


def _duration(seconds: float | None) -> str:
  if seconds is None or seconds < 90.0:
    return _text(seconds) if seconds is None else f"{seconds:.3g} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes // 60} h {minutes % 60} min" if minutes >= 90 else f"{minutes} min {rest} s"
