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


def photo_scores_by_photo() -> str:
  """Photo to 3D, each photo with means over its seeds, the worst first."""
  runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
  for run in record("evaluation/records/images.json")["with_prior"]["records"]:
    runs.setdefault((run["caption"], run["elevation_deg"]), []).append(run)
  worst_first = sorted(runs.items(), key=lambda item: _mean(item[1], "silhouette_iou"))
  rows = [(caption, f"{elevation:.0f}", f"{_mean(same, 'told_elevation_deg'):.0f}",
           *(f"{_mean(same, score):.2f}" for score in ("silhouette_iou", "worst_view_iou", "volume_iou")))
          for (caption, elevation), same in worst_first]
  head = ("photo of", "elevation, degrees", "estimated", "silhouette IoU", "of the worst view", "volume IoU")
  errors = [abs(run["told_elevation_deg"] - run["elevation_deg"]) for same in runs.values() for run in same]
  return f"{markdown(head, rows)}\n\nMean error of the estimated elevations: {np.mean(errors):.1f} degrees."


def fronted_scores() -> str:
  """Text to 3D of the captions with a front, by plain SDS."""
  found = record("evaluation/records/estimators.json")
  rows = [(run["prompt"], f"{run['silhouette_iou']:.2f}", f"{run['volume_iou']:.2f}",
           "yes" if run["colours_right"] else "no")
          for run in found["estimators"]["sds"] if not run["plain"]]
  return markdown(("caption", "silhouette IoU", "volume IoU", "colours right"), rows)


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


def estimator_gaps() -> str:
  """How far each estimator is from SDS on the main job, and the runs with wrong colours."""
  found = record("evaluation/records/estimators.json")["estimators"]
  sds = _mean(found["sds"], "silhouette_iou")
  gaps = sorted(((_mean(runs, "silhouette_iou") - sds, name) for name, runs in found.items() if name != "sds"),
                reverse=True)
  wrong = {name: sum(not run["colours_right"] for run in runs) for name, runs in found.items()}
  return ("Silhouette IoU minus that of SDS: " + ", ".join(f"`{name}` {gap:+.3f}" for gap, name in gaps)
          + f". Runs with a wrong colour, of {len(found['sds'])}: "
          + (", ".join(f"`{name}` {count}" for name, count in wrong.items() if count) or "none") + ".")


def estimator_study() -> str:
  """Every estimator on exact densities."""
  found = record("testbed/records/estimators.json")
  made = dict(command="python -m sds_jax.testbed.study --out=study",
              machine=f"{found['machine']}; {found['seconds']} s")
  return _made_by(suite.table(found["estimators"]), made)


def scaling_tables() -> str:
  """The cost of spreading a step over devices, predicted and measured."""
  return scaling.table(record("benchmarks/records/scaling.json")).strip()


def scaling_assumptions() -> str:
  """The links and chips that the predictions of scaling assume, and the machine of the measurements."""
  found = record("benchmarks/records/scaling.json")
  names: dict[str, list[str]] = {}
  for row in found["slices"]:
    facts = (f"{row['link'] / 1e9:.0f} GB/s one way, {1e6 * row['hop']:.0f} us a hop, a peak of "
             f"{row['peak'] / 1e12:.0f} TFLOP/s")
    names.setdefault(facts, []).append(row["name"])
  chips = "; ".join(f"{' and '.join(same)}: {facts}" for facts, same in names.items())
  return (f"The first table is a prediction for a ring ({chips}), for a step at {found['mfu']:.0%} of the peak. The "
          f"others were measured on virtual devices of one core of an {found['machine']['processor']}, "
          f"jax {found['machine']['versions']['jax']}. Command: `python -m sds_jax.benchmarks.scaling`.")


def scene_rates() -> str:
  """Many prompts at once against one after the other."""
  found = record("benchmarks/records/scenes.json")
  made = dict(command=f"python -m sds_jax.benchmarks.scenes --prompts={len(found['prompts'])}",
              machine=f"one core of an {found['machine']['processor']}")
  return _made_by(scenes.table(found).strip(), made)


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


def step_details() -> str:
  """Seconds of compiling and peak memory of the run that `step_times` is of."""
  found = record("benchmarks/records/cpu-2-cores.json")
  ours, theirs = (bytes_ / 2**30 for bytes_ in (found["peak_memory_bytes"], found["peer"]["torch_peak_memory_bytes"]))
  return (f"In the same run compiling the step took {found['compile']['cold_s']:.1f} s, and "
          f"{found['compile']['cached_s']:.1f} s from the persistent cache. The processes peaked at {ours:.1f} GiB "
          f"(JAX) and {theirs:.1f} GiB (PyTorch).")


def prior_scores() -> str:
  """The scores of the shipped text prior on captions."""
  found = record("shapeworld/prior/scores.json")
  return (f"Of the captions of [its card](reference/cards/text-prior.md) {found['colour_all']:.0%} come out with the "
          f"right colours and {found['shape_all']:.1%} with the right shapes, by a strict judge.")


def published_memory() -> str:
  """The memory of a step with published priors, as XLA plans it."""
  found = record("benchmarks/records/published-memory.json")
  rows = [(f"`{row['prior']}`", row["image"], f"{row['weights_gib']:.2f} GiB", f"{row['temporaries_gib']:.2f} GiB",
           f"{row['total_gib']:.2f} GiB ({row['total_gib'] * 2**30 / 1e9:.1f} GB)") for row in found["rows"]]
  return _made_by(markdown(("prior", "image", "weights", "temporaries", "total"), rows), found)


def full_size_parity() -> str:
  """Networks at full size against PyTorch."""
  found = record("benchmarks/records/parity-full-size.json")
  rows = [(row["network"], row.get("input", ""), f"{row['float32']:.1e}",
           *(f"{row[key]:.1e}" if key in row else "" for key in ("bfloat16", "torch_bfloat16", "float16")))
          for row in found["rows"]]
  head = ("network", "input", "float32", "bfloat16 against float32", "PyTorch's bfloat16 against float32",
          "float16 against float32")
  return _made_by(markdown(head, rows), found)


def published_run() -> str:
  """Three whole steps with random weights in the shapes of Stable Diffusion and of MVDream."""
  found = record("benchmarks/records/published-memory.json")
  sd, mvdream = found["run"], found["run_mvdream"]
  return (f"Three whole steps with random weights at full size took {sd['seconds']} s: {sd['compile_seconds']} s "
          f"for compiling, {sd['step_seconds']} s a step. The peak memory was {sd['peak_memory_gib']} GiB. "
          f"Command: `{sd['command']}`. Machine: {sd['machine']}.\n\n"
          f"Three steps of MVDream, two with renders of 64x64 and one of 256x256, took {mvdream['cpu_seconds']} s "
          f"of one core, with the compilation of both programs and the exports. The peak memory was "
          f"{mvdream['peak_memory_gib']:.1f} GiB. Command: `{mvdream['command']}`. Machine: {mvdream['machine']}.")


def loading() -> str:
  """The memory that loading of weights takes."""
  found = record("benchmarks/records/parity-full-size.json")["loading"]
  return (f"Loading makes no second copy of the weights: the process grows by {found['growth_bfloat16']} times the "
          f"parameters in bfloat16 and by {found['growth_float32']} times in float32 ({found['network']}; without the "
          f"pages of the file, which the system takes back at need). Command: `{found['command']}`.")


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
        text_scores, fronted_scores, photo_scores, photo_scores_by_photo,
        photo_scores_without_prior, recipe_scores, estimator_scores, estimator_gaps, estimator_study,
        scaling_assumptions, scaling_tables, scene_rates, step_times, step_details, prior_scores,
        published_memory,
        published_run, loading, full_size_parity, default_run, drills,
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
