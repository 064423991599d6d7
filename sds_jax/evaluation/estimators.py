r"""A table of all estimators: the shipped prior, one set of captions, each estimator at its published defaults.

    python -m sds_jax.evaluation.estimators --prompts=12 --estimators=sds,csd --out=estimator_scores

Each estimator compiles once. An estimator is not run again if the folder holds its records of equal settings,
captions, versions and prior, so a stopped command continues. Settings are overridden for all estimators as for `run.py`
(`--config.training.steps=300`). Afterwards the steps of all estimators are timed in turns; `--notimes` leaves this out.
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sds_jax import compilation, schema, settings as settings_lib, terminal
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.evaluation.recipes import run_task
from sds_jax.evaluation.shapeworld import CaptionRuns, Record, draw_captions, exit_on_user_error
from sds_jax.io import files
from sds_jax.shapeworld import captions
from sds_jax.tasks.text3d import Text3DTask
from sds_jax.training.versions import versions

SHIPPED = Path(__file__).parent / "records" / "estimators.json"
"""The records that come with the package."""

Scores = dict[str, list[Record]]
"""Name of an estimator -> its runs."""

WARM_UP = 60
"""Steps before the first timed step: by then rays no longer pass through a full occupancy grid."""


def check_names(names: Sequence[str], flag: str = "--estimators") -> None:
  """Raises ValueError unless `names` holds estimators only, and at least one."""
  unknown = [name for name in names if name not in ESTIMATORS]
  if unknown or not names:
    raise ValueError(f"{flag}={','.join(names)}: {unknown[0] if unknown else ''!r} is none of {', '.join(ESTIMATORS)}")


def task_with(name: str, config: ConfigDict) -> Text3DTask:
  """Returns the task of `config`, validated, with the estimator `name`.

  Raises:
    ConfigError: see `settings.validate`; the message begins with the estimator's name.
  """
  changed = config.copy_and_resolve_references()
  changed.distillation.estimator = name
  if not ESTIMATORS[name].guided:
    with changed.distillation.ignore_type():  # a resolved number would refuse the word
      changed.distillation.guidance_scale = schema.AUTO  # has no effect on this estimator
  try:
    return Text3DTask(settings_lib.validate(changed))
  except schema.ConfigError as error:
    raise schema.ConfigError(f"estimator {name}: {error}") from error


def run(names: Sequence[str], config: ConfigDict, specs: Sequence[captions.Spec], seeds: Sequence[int],
        folder: Path, times: bool = False) -> Scores:
  """Runs and scores each estimator.

  Writes renders and records to folder/NAME, all records and the table to `folder`.

  Args:
    names: keys of ESTIMATORS; the settings of all are checked before the first run.
    config: the common settings; not yet validated.
    times: whether `step_times` are measured, too.

  Raises:
    ValueError: a name is unknown.
    ConfigError, CheckpointError: see `task_with` and `Text3DTask.load_prior`.
  """
  check_names(names)
  # All settings are checked before the first run: a mistake in the last must not cost the others' time.
  chosen = {name: task_with(name, config) for name in names}
  scores = {}
  for name, task in chosen.items():
    print(f"{name} ...", flush=True)
    scores[name] = run_task(task, specs, seeds, folder / name)
  # Written before the timing, which takes long: the scores survive if the timing fails.
  _write(scores, read_times(folder), folder)
  if times:
    _write(scores, step_times(chosen, captions.caption(specs[0])), folder)
  return scores


def _write(scores: Scores, step_ms: Mapping[str, float], folder: Path) -> None:
  files.write_json(dict(versions=versions(), estimators=scores, step_ms=step_ms), folder / "records.json")
  with files.atomic_write(folder / "table.md") as file:
    file.write(table(scores, step_ms).encode() + b"\n")


def step_times(chosen: Mapping[str, Text3DTask], prompt: str, steps: int = 5,
               rounds: int = 4) -> dict[str, float]:
  """Measures milliseconds a step of each estimator.

  The time is the best of `rounds`, after WARM_UP steps.

  The estimators take turns, because on a shared machine only times measured side by side can be compared.

  Args:
    chosen: name -> validated settings, of one prior.
    steps: number of steps at a time.
  """
  prior = next(iter(chosen.values())).load_prior()
  # One prior for all: its weights are in memory once.
  runs = {name: CaptionRuns(task, *prior) for name, task in chosen.items()}
  states = {}
  for name in tqdm.tqdm(runs, desc="compiling, to be timed"):
    state, fixed = runs[name].begin(prompt, 0)
    states[name] = runs[name].advance(state, fixed, range(WARM_UP)), fixed
  times: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      started = time.perf_counter()  # `advance` waits for the device: dispatch alone takes almost no time
      states[name] = run.advance(*states[name], range(WARM_UP, WARM_UP + steps)), states[name][1]
      times[name].append((time.perf_counter() - started) / steps * 1e3)
  # The minimum: other work on the machine only adds time.
  return {name: min(measured) for name, measured in times.items()}


def read(path: Path) -> Scores:
  """Returns the scores in the file or folder that `run` has written.

  Without a file there are none: {}.

  Raises:
    DamagedFileError: the file holds no records of estimators.
  """
  return _stored(path).get("estimators", {})


def read_times(path: Path) -> dict[str, float]:
  """Returns the times in the file or folder that `run` has written.

  The times are those of `step_times`; {} without a file.
  """
  return _stored(path).get("step_ms", {})


def _stored(path: Path) -> dict[str, Any]:
  path = path / "records.json" if path.is_dir() else path
  stored = files.read_json(path)
  if stored and not isinstance(stored.get("estimators"), dict):
    raise files.DamagedFileError(f"{path} holds no records of estimators; make the file with "
                                 "python -m sds_jax.evaluation.estimators")
  return stored


def table(scores: Scores, step_ms: Mapping[str, float]) -> str:
  """Returns means and worst cases of each estimator as a Markdown table.

  The table has the known times of a step, too.
  """
  rows = ["| estimator | runs | IoU | worst | volume IoU | colours right | colour error | empty or full | ms a step "
          "| times SDS |", "|---" * 10 + "|"]
  for name, records in scores.items():
    mean = lambda key: float(np.mean([r[key] for r in records]))  # noqa: E731
    ms = f"{step_ms[name]:.0f}" if name in step_ms else "–"
    relative = f"{step_ms[name] / step_ms['sds']:.2f}" if {name, "sds"} <= set(step_ms) else "–"
    rows.append(f"| `{name}` | {len(records)} | {mean('silhouette_iou'):.3f} "
                f"| {min(r['silhouette_iou'] for r in records):.3f} | {mean('volume_iou'):.3f} "
                f"| {mean('colours_right'):.0%} | {mean('colour_error'):.3f} "
                f"| {sum(r['empty'] or r['full'] for r in records)} | {ms} | {relative} |")
  return "\n".join(rows)


def main() -> None:
  """Runs the command line."""
  config = config_flags.DEFINE_config_dict("config", settings_lib.defaults("text3d"))
  chosen = flags.DEFINE_list("estimators", ",".join(ESTIMATORS), f"of {', '.join(ESTIMATORS)}")
  prompts = flags.DEFINE_integer("prompts", 12, "number of captions", lower_bound=1)
  seeds = flags.DEFINE_integer("seeds", 1, "number of seeds of each caption", lower_bound=1)
  draw = flags.DEFINE_integer("draw", 4, "seed of the drawing of captions")
  times = flags.DEFINE_boolean("times", True, "time a step of each as well")
  out = flags.DEFINE_string("out", "estimator_scores", "folder of the table, the records and the renders")

  def action(argv: Sequence[str]) -> None:
    if argv[1:]:
      raise ValueError(f"{argv[1]!r} is not an option; name estimators as --estimators=sds,csd")
    specs, folder = draw_captions(prompts.value, draw.value), terminal.user_path(out.value)
    check_names(chosen.value)
    compilation.prepare()
    scores = run(chosen.value, config.value, specs, range(seeds.value), folder, times.value)
    print(table(scores, read_times(folder)))
    print(f"renders, records and table are in {folder}")

  app.run(lambda argv: exit_on_user_error(lambda: action(argv)))


if __name__ == "__main__":
  main()
