"""Makes every table of results from the records that ship with the package, as Markdown.

    python docs/_ext/result_tables.py            # lists the tables
    python docs/_ext/result_tables.py TEXT_SCORES

`generated_text.py` writes the tables into README.md and into the pages.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sds_jax
from sds_jax.benchmarks import scaling, scenes
from sds_jax.evaluation import estimators, images, recipes, shapeworld
from sds_jax.testbed import suite

PACKAGE = Path(sds_jax.__file__).parent


def record(path: str) -> dict[str, Any]:
  """Returns a record by its path below the package."""
  return json.loads((PACKAGE / path).read_text(encoding="utf-8"))


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Returns a Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def _mean(runs: Sequence[dict[str, Any]], score: str) -> float:
  return float(np.mean([run[score] for run in runs]))


def _made_by(table: str, source: dict[str, Any]) -> str:
  """Returns a table with the command and the machine of its record below it."""
  return f"{table}\n\nCommand: `{source['command']}`. Machine: {source['machine']}."


def text_scores() -> str:
  """Text to 3D over captions and seeds, by group of captions."""
  found = record("evaluation/records/shapeworld.json")
  return _made_by(shapeworld.table(found["records"]), found)


def photo_scores() -> str:
  """Photo to 3D over sample photos, with the prior of views."""
  found = record("evaluation/records/images.json")
  return _made_by(images.table(found["with_prior"]["records"]), found)


def photo_scores_without_prior() -> str:
  """Photo to 3D over sample photos, without the prior of views."""
  return images.table(record("evaluation/records/images.json")["without_prior"]["records"])


def recipe_scores() -> str:
  """The published recipes on the shipped prior."""
  found = record("evaluation/records/recipes.json")
  return _made_by(recipes.table({name: entry["records"] for name, entry in found["recipes"].items()}), found)


def estimator_scores() -> str:
  """Every estimator on the main job."""
  path = PACKAGE / "evaluation/records/estimators.json"
  found = dict(record("evaluation/records/estimators.json"),
               command="python -m sds_jax.evaluation.estimators --prompts=12")
  return _made_by(estimators.table(estimators.read(path), estimators.read_times(path)), found)


def estimator_study() -> str:
  """Every estimator on exact densities."""
  found = record("testbed/records/estimators.json")
  return _made_by(suite.table(found["estimators"]), dict(found, command="python -m sds_jax.testbed.study --out=study"))


def scaling_tables() -> str:
  """The cost of spreading a step over devices, predicted and measured."""
  return scaling.table(record("benchmarks/records/scaling.json")).strip()


def scene_rates() -> str:
  """Many prompts at once against one after the other."""
  return scenes.table(record("benchmarks/records/scenes.json")).strip()


def step_times() -> str:
  """The default step beside the same step in PyTorch."""
  found = record("benchmarks/records/cpu-2-cores.json")
  peer, machine = found["peer"], found["machine"]
  rows = [(mode.replace("_", " "), f"{1e3 * peer['jax'][mode]['median_s']:.0f}",
           f"{1e3 * peer['torch'][mode]['median_s']:.0f}", f"{ratio:.2f}")
          for mode, ratio in peer["ratios"].items() if ratio is not None]
  versions = machine["versions"]
  made = dict(command="python -m sds_jax.benchmarks.step --prior=shapeworld --peer=torch --steps=10 --repeats=5 "
                      "--rounds=6",
              machine=f"{machine['processor']}, {machine['cpus']} cores, jax {versions['jax']}, torch "
                      f"{versions['torch']}, diffusers {versions['diffusers']}")
  return _made_by(markdown(("step", "JAX, median ms", "PyTorch, median ms", "PyTorch / JAX"), rows), made)


def published_memory() -> str:
  """The memory of a step with published priors, as XLA plans it."""
  found = record("benchmarks/records/published-memory.json")
  rows = [(f"`{row['prior']}`", row["image"], f"{row['weights_gib']:.2f} GiB", f"{row['temporaries_gib']:.2f} GiB",
           f"{row['total_gib']:.2f} GiB ({row['total_gib'] * 2**30 / 1e9:.1f} GB)") for row in found["rows"]]
  return _made_by(markdown(("prior", "image", "weights", "temporaries", "total"), rows), found)


def full_size_parity() -> str:
  """Networks at full size against PyTorch."""
  found = record("benchmarks/records/parity-full-size.json")
  rows = [(row["network"], row.get("input", ""), f"{row['float32']:.1e}", f"{row['bfloat16']:.1e}",
           f"{row['torch_bfloat16']:.1e}" if "torch_bfloat16" in row else "") for row in found["rows"]]
  head = ("network", "input", "float32", "bfloat16 against float32", "PyTorch's bfloat16 against float32")
  return _made_by(markdown(head, rows), found)


def default_run() -> str:
  """The default run: time, memory and scores."""
  found = record("evaluation/records/default-run.json")
  rows = [
      ("the whole command", f"{found['seconds']} s", f"{found['first_seconds']} s"),
      ("compiling the step", f"{found['compile_seconds']} s", f"{found['first_compile_seconds']} s"),
      (f"{found['steps']} steps, with renders on the way", f"{found['steps_seconds']} s", ""),
      ("renders, turntable, mesh, page", f"{found['outputs_seconds']} s", ""),
      ("peak memory", f"{found['peak_memory_gib']} GiB", f"{found['first_peak_memory_gib']} GiB"),
      ("silhouette IoU over 16 views", f"{found['silhouette_iou']:.2f}", ""),
      ("volume IoU", f"{found['volume_iou']:.2f}", ""),
      ("colour error", f"{found['colour_error']:.2f}", ""),
      ("colours right", "yes" if found["colours_right"] else "no", "")]
  return _made_by(markdown(("", "value", "first run on a machine"), rows), found)


def drills() -> str:
  """What the drills broke on purpose, and how often a run was wrong afterwards."""
  found = record("evaluation/records/drills.json")
  rows = [(f"`{row['command']}`", row["wrong"], row["result"]) for row in found["rows"]]
  return markdown(("drill", "wrong", "result"), rows)


def generator_seconds() -> str:
  """Seconds of a run of each image generator."""
  found = record("generators/records/seconds.json")
  return _made_by(markdown(("generator", "seconds"), [(f"`{k}`", v) for k, v in found["seconds"].items()]), found)


def quality() -> str:
  """README's table of quality: the three jobs on the shipped priors."""
  text = record("evaluation/records/shapeworld.json")["records"]
  photos = record("evaluation/records/images.json")
  named = {"text to 3D": text, "photo to 3D": photos["with_prior"]["records"],
           "photo to 3D, photo losses alone": photos["without_prior"]["records"]}
  rows = [(name, len(runs), f"{_mean(runs, 'silhouette_iou'):.3f}", f"{min(r['silhouette_iou'] for r in runs):.3f}",
           f"{_mean(runs, 'volume_iou'):.3f}", f"{_mean(runs, 'colours_right'):.0%}", f"{_mean(runs, 'seconds'):.0f}")
          for name, runs in named.items()]
  return markdown(("task", "runs", "silhouette IoU", "worst run", "volume IoU", "colours right", "seconds a run"), rows)


TABLES: dict[str, Callable[[], str]] = {
    make.__name__: make for make in (
        text_scores, photo_scores, photo_scores_without_prior, recipe_scores, estimator_scores, estimator_study,
        scaling_tables, scene_rates, step_times, published_memory, full_size_parity, default_run, drills,
        generator_seconds, quality)}
"""Name -> function that makes the table."""


def main(names: Sequence[str]) -> None:
  """Prints the tables of these names, or the names."""
  for name in names:
    print(TABLES[name.lower()](), end="\n\n")
  if not names:
    print("\n".join(f"{name:<28}{make.__doc__}" for name, make in TABLES.items()))


if __name__ == "__main__":
  main(sys.argv[1:])
