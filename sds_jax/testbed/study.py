r"""One command for the comparison of all estimators: exact experiments, figures, records, and a page to read.

    python -m sds_jax.testbed.study --out=study

writes study/study.html, which opens from disk and needs no network; study/records.json, the numbers; study/table.md.
Records of runs in three dimensions come from `--shapeworld=FOLDER_or_FILE`, else from those that ship with the package;
`--run_shapeworld` makes them first, in study/shapeworld (hours on a CPU; goes on where it was stopped).
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

from sds_jax import compilation
from sds_jax.evaluation import estimators as scoring
from sds_jax.evaluation.shapeworld import draw_captions, exit_on_user_error
from sds_jax.io import files
from sds_jax.testbed import page, suite
from sds_jax.testbed.estimator_settings import SETTINGS
from sds_jax.testbed.suite import Measurements, Sizes
from sds_jax.training import config as config_lib, outputs

COMMAND = "python -m sds_jax.testbed.study --run_shapeworld"
RECORDS = Path(__file__).parent / "records" / "estimators.json"
"""The records of the exact part that come with the package, of the default sizes."""


def write(names: Sequence[str], folder: Path, sizes: Sizes, scores: scoring.Scores,
          step_ms: Mapping[str, float] | None = None) -> Path:
  """Runs the exact experiments of `names` and writes records, table and page into `folder`; the page's path.

  Args:
    names: in `estimator_settings.SETTINGS`.
    scores: of runs in three dimensions; may be {}.
    step_ms: milliseconds of a step of each of these, where known.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = write(["sds"], Path(folder), Sizes(particles=4, steps=200, draws=4, grid=2, times=2), {})
  ...   print(path.name, sorted(other.name for other in path.parent.iterdir()))
  study.html ['records.json', 'study.html', 'table.md']
  """
  started, every = time.perf_counter(), {}
  with tqdm.tqdm(names, desc="estimators") as bar:
    for name in bar:
      bar.set_postfix_str(name)
      every[name] = suite.run(name, sizes)
  summaries = {name: suite.summary(found) for name, found in every.items()}
  seconds, machine = time.perf_counter() - started, _machine()
  files.write_json(dict(versions=outputs.versions(), machine=machine, seconds=round(seconds), sizes=vars(sizes),
                        estimators=summaries), folder / "records.json")
  with files.atomic_write(folder / "table.md") as file:
    file.write(suite.table(summaries).encode() + b"\n")
  byline = f"{len(names)} estimators in {seconds:.0f} s on {machine}"
  return _write_page(every, summaries, scores, step_ms or {}, byline, folder)


def _write_page(every: dict[str, Measurements], summaries: dict[str, dict[str, Any]], scores: scoring.Scores,
                step_ms: Mapping[str, float], byline: str, folder: Path) -> Path:
  style = resources.files("sds_jax.io").joinpath("report.css").read_text(encoding="utf-8")
  content = page.page(every, summaries, style, byline, _shapeworld(scores, step_ms))
  with files.atomic_write(folder / "study.html") as file:
    file.write(content)
  return folder / "study.html"


def _shapeworld(scores: scoring.Scores, step_ms: Mapping[str, float]) -> str:
  """The page's section on runs in three dimensions."""
  if not scores:
    return page.missing_section(COMMAND)
  mean = lambda records, key: float(np.mean([r[key] for r in records]))  # noqa: E731
  columns = {title: [mean(records, key) for records in scores.values()] for title, key in (
    ("silhouette IoU", "silhouette_iou"), ("colours right", "colours_right"), ("colour error", "colour_error"))}
  if set(scores) <= set(step_ms):
    columns["ms a step"] = [step_ms[name] for name in scores]
  return page.shapeworld_section(scoring.table(scores, step_ms), columns, list(scores))


def _machine() -> str:
  """Cores and processor that this process may use."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "a processor")
  except OSError:
    name = "a processor"
  return f"{cores} core{'s' if cores != 1 else ''} of {name}"


def find_scores(given: str) -> scoring.Scores:
  """Scores of runs in three dimensions, name -> one record a run: those of --shapeworld, or of the package.

  Args:
    given: a folder or a file; "" for the package's own.

  Raises:
    FileNotFoundError: --shapeworld names nothing.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = files.write_json(dict(estimators=dict(sds=[dict(seconds=30.0)])), Path(folder) / "records.json")
  ...   print(find_scores(folder))
  {'sds': [{'seconds': 30.0}]}
  """
  if not given:
    return scoring.read(scoring.SHIPPED)
  scores = scoring.read(Path(given))
  if not scores:
    raise FileNotFoundError(f"--shapeworld={given}: there are no records; give a folder or a records.json that "
                            "python -m sds_jax.evaluation.estimators has written")
  return scores


def main() -> None:
  """Command line: a quick look at two of them, say.

      python -m sds_jax.testbed.study --estimators=sds,csd --particles=50 --steps=300 --out=quick
  """
  out = flags.DEFINE_string("out", "study", "folder of the page, the records and the table")
  chosen = flags.DEFINE_list("estimators", ",".join(SETTINGS), f"of {', '.join(SETTINGS)}")
  particles = flags.DEFINE_integer("particles", Sizes.particles, "in the plane", lower_bound=10)
  steps = flags.DEFINE_integer("steps", Sizes.steps, "of each descent", lower_bound=10)
  shapeworld = flags.DEFINE_string("shapeworld", "", "records of runs in three dimensions: a folder or a file")
  run_shapeworld = flags.DEFINE_boolean("run_shapeworld", False, "make these records first, in OUT/shapeworld")
  prompts = flags.DEFINE_integer("prompts", 12, "captions of --run_shapeworld", lower_bound=1)

  def action(argv: Sequence[str]) -> None:
    if argv[1:]:
      raise ValueError(f"{argv[1]!r} is not an option; estimators are named as --estimators=sds,csd")
    scoring.check_names(chosen.value)
    if importlib.util.find_spec("matplotlib") is None:
      raise ValueError("figures need matplotlib, which is not installed: pip install 'sds_jax[study]'")
    if run_shapeworld.value and shapeworld.value:
      raise ValueError(f"--run_shapeworld makes records, and --shapeworld={shapeworld.value} names some: give one")
    folder = Path(out.value)
    source = Path(shapeworld.value) if shapeworld.value else scoring.SHIPPED
    scores = {} if run_shapeworld.value else find_scores(shapeworld.value)
    compilation.prepare()
    if run_shapeworld.value:
      source = folder / "shapeworld"
      scores = scoring.run(chosen.value, config_lib.default(), draw_captions(prompts.value, 4), range(1), source, True)
    sizes = Sizes(particles.value, steps.value)
    print(f"done: {write(chosen.value, folder, sizes, scores, scoring.read_times(source))}")

  app.run(lambda argv: exit_on_user_error(lambda: action(argv)))


if __name__ == "__main__":
  main()
