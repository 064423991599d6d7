r"""The study of all estimators: exact experiments, figures, records, and an HTML page.

    python -m sds_jax.testbed.study --out=study

writes study/study.html (opens from disk, needs no network), study/records.json (the numbers) and study/table.md.
Records of runs in three dimensions come from `--shapeworld=FOLDER_or_FILE`, by default from the package.
`--run_shapeworld` creates new records first, in study/shapeworld (hours on a CPU; a stopped run continues).
"""
from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import app, flags

from sds_jax import compilation, settings, terminal
from sds_jax.evaluation import estimators as scoring
from sds_jax.evaluation.shapeworld import draw_captions, exit_on_user_error
from sds_jax.io import files
from sds_jax.testbed import page, suite
from sds_jax.testbed.estimator_settings import SETTINGS
from sds_jax.testbed.suite import Measurements, Sizes
from sds_jax.training.versions import versions

COMMAND = "python -m sds_jax.testbed.study --run_shapeworld"
RECORDS = Path(__file__).parent / "records" / "estimators.json"
"""Records of the exact experiments shipped with the package, at the default sizes."""


def write_study(names: Sequence[str], folder: Path, sizes: Sizes, scores: scoring.Scores,
                step_ms: Mapping[str, float] | None = None) -> Path:
  """Runs the exact experiments and writes the study.

  The study is records.json, table.md and study.html; returns the path of study.html.

  Args:
    names: names in `estimator_settings.SETTINGS`.
    folder: to write; created.
    sizes: of the experiments.
    scores: of runs in three dimensions; may be {}.
    step_ms: name -> milliseconds per step of these runs, or None.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = write_study(["sds"], Path(folder), Sizes(particles=4, steps=200, draws=4, grid=2, times=2), {})
  ...   print(path.name, sorted(other.name for other in path.parent.iterdir()))
  study.html ['records.json', 'study.html', 'table.md']
  """
  started, all_measured = time.perf_counter(), {}
  with tqdm.tqdm(names, desc="estimators") as bar:
    for name in bar:
      bar.set_postfix_str(name)
      all_measured[name] = suite.run(name, sizes)
  summaries = {name: suite.summary(measured) for name, measured in all_measured.items()}
  seconds, machine = time.perf_counter() - started, _describe_machine()
  files.write_json(dict(versions=versions(), machine=machine, seconds=round(seconds), sizes=vars(sizes),
                        estimators=summaries), folder / "records.json")
  # The records and the table are complete before the page refers to their numbers.
  with files.atomic_write(folder / "table.md") as file:
    file.write(suite.table(summaries).encode() + b"\n")
  byline = f"{len(names)} estimators in {seconds:.0f} s on {machine}"
  return _write_page(all_measured, summaries, scores, step_ms or {}, byline, folder)


def _write_page(all_measured: dict[str, Measurements], summaries: dict[str, dict[str, Any]], scores: scoring.Scores,
                step_ms: Mapping[str, float], byline: str, folder: Path) -> Path:
  # The report of a run and the study share a style sheet.
  style = resources.files("sds_jax.io").joinpath("report.css").read_text(encoding="utf-8")
  content = page.render_page(all_measured, summaries, style, byline, _shapeworld_section(scores, step_ms))
  with files.atomic_write(folder / "study.html") as file:
    file.write(content)
  return folder / "study.html"


def _shapeworld_section(scores: scoring.Scores, step_ms: Mapping[str, float]) -> str:
  """Formats the section on runs in three dimensions."""
  if not scores:
    return page.missing_records_section(COMMAND)
  # A mean over all runs of an estimator.
  mean = lambda records, key: float(np.mean([r[key] for r in records]))  # noqa: E731
  columns = {title: [mean(records, key) for records in scores.values()] for title, key in (
    ("silhouette IoU", "silhouette_iou"), ("colours right", "colours_right"), ("colour error", "colour_error"))}
  # A column of times needs a time for every row.
  if set(scores) <= set(step_ms):
    columns["ms a step"] = [step_ms[name] for name in scores]
  return page.shapeworld_section(scoring.table(scores, step_ms), columns, list(scores))


def _describe_machine() -> str:
  """Describes the processor and the number of usable cores."""
  # Affinity, not `cpu_count`: containers often allow a part of the cores.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "a processor")
  except OSError:
    name = "a processor"
  return f"{cores} core{'s' if cores != 1 else ''} of {name}"


def load_scores(path: str) -> scoring.Scores:
  """Loads scores of runs in three dimensions.

  Name of an estimator -> records, one per run.

  Args:
    path: a folder or a file; "" for the records of the package.

  Raises:
    FileNotFoundError: no records at the path.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = files.write_json(dict(estimators=dict(sds=[dict(seconds=30.0)])), Path(folder) / "records.json")
  ...   print(load_scores(folder))
  {'sds': [{'seconds': 30.0}]}
  """
  if not path:
    return scoring.read(scoring.SHIPPED)
  scores = scoring.read(Path(path))
  if not scores:
    raise FileNotFoundError(f"--shapeworld={path}: no records there; give a folder or a records.json written by "
                            "python -m sds_jax.evaluation.estimators")
  return scores


def main() -> None:
  """Runs the command line. A quick study of two estimators:

      python -m sds_jax.testbed.study --estimators=sds,csd --particles=50 --steps=300 --out=quick
  """
  out = flags.DEFINE_string("out", "study", "folder of the page, the records and the table")
  chosen = flags.DEFINE_list("estimators", ",".join(SETTINGS), f"estimators to run, of {', '.join(SETTINGS)}")
  particles = flags.DEFINE_integer("particles", Sizes.particles, "particles in the plane", lower_bound=10)
  steps = flags.DEFINE_integer("steps", Sizes.steps, "steps of each descent", lower_bound=10)
  shapeworld = flags.DEFINE_string("shapeworld", "", "records of runs in three dimensions: a folder or a file")
  run_shapeworld = flags.DEFINE_boolean("run_shapeworld", False, "create these records first, in OUT/shapeworld")
  prompts = flags.DEFINE_integer("prompts", 12, "number of captions of --run_shapeworld", lower_bound=1)

  def action(argv: Sequence[str]) -> None:
    if argv[1:]:
      raise ValueError(f"{argv[1]!r} is not an option; name estimators as in --estimators=sds,csd")
    # All mistakes are reported before any computation.
    scoring.check_names(chosen.value)
    if importlib.util.find_spec("matplotlib") is None:
      raise ValueError("figures need matplotlib, but matplotlib is not installed: pip install 'sds_jax[study]'")
    if run_shapeworld.value and shapeworld.value:
      raise ValueError(f"--run_shapeworld creates records and --shapeworld={shapeworld.value} names records: give only "
                       "one of the two flags")
    # Nothing is written before all flags are checked.
    folder = terminal.user_path(out.value)
    source = Path(shapeworld.value) if shapeworld.value else scoring.SHIPPED
    scores = {} if run_shapeworld.value else load_scores(shapeworld.value)
    compilation.prepare()
    if run_shapeworld.value:
      source = folder / "shapeworld"
      scores = scoring.run(chosen.value, settings.defaults(), draw_captions(prompts.value, 4), range(1), source, True)
    # Only the sizes with a flag differ from the defaults of the shipped records.
    sizes = Sizes(particles.value, steps.value)
    print(f"done: {write_study(chosen.value, folder, sizes, scores, scoring.read_times(source))}")

  app.run(lambda argv: exit_on_user_error(lambda: action(argv)))


if __name__ == "__main__":
  main()
