r"""A table of the published recipes and the package's own settings: the shipped prior, one set of captions.

    python -m sds_jax.evaluation.recipes --prompts=4 --out=recipe_scores

A recipe is run with its file's settings for the prior `shapeworld`. Each recipe compiles once. A recipe is not run
again if the folder holds its records of equal settings, captions, versions and prior. A stopped command continues
after the last finished run.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from sds_jax import compilation, schema, settings as settings_lib, terminal
from sds_jax.evaluation.record_log import Record, RecordLog, run_inputs
from sds_jax.evaluation.shapeworld import CaptionRuns, draw_captions, exit_on_user_error, run_set
from sds_jax.io import files
from sds_jax.settings.recipes import text3d as recipes_lib
from sds_jax.shapeworld import captions
from sds_jax.tasks.text3d import Text3DTask

DEFAULT = "default"
"""Name of the package's own settings in the table."""


def run_recipe(name: str, specs: Sequence[captions.Spec], seeds: Sequence[int], folder: Path) -> list[Record]:
  """Runs and scores a recipe, or DEFAULT, on the shipped prior.

  Writes records and renders to `folder`.

  Raises:
    ConfigError, CheckpointError: see `settings.validate` and `Text3DTask.load_prior`.
  """
  config = recipes_lib.from_words("shapeworld" if name == DEFAULT else f"{name},shapeworld")
  config.parallel.devices = 1  # a step has too few views to fill several devices
  return run_task(Text3DTask(settings_lib.validate(config)), specs, seeds, folder)


def run_task(task: Text3DTask, specs: Sequence[captions.Spec], seeds: Sequence[int],
             folder: Path) -> list[Record]:
  """Runs and scores a task.

  Returns the records in `folder` instead if their settings and runs are equal.

  Raises:
    ConfigError, CheckpointError: see `Text3DTask.load_prior`.
  """
  inputs = run_inputs(schema.to_dict(task.settings), task.settings.prior.path or task.settings.prior.name)
  expected = inputs | {"runs": [[captions.caption(spec), seed] for spec in specs for seed in seeds]}
  stored = files.read_json(folder / "records.json")
  if {name: stored.get(name) for name in expected} == expected:
    return stored["records"]
  runs = CaptionRuns(task, *task.load_prior())
  records = run_set(runs, specs, seeds, RecordLog(folder, inputs))
  files.write_json(dict(expected, records=records), folder / "records.json")
  return records


def table(scores: dict[str, list[Record]]) -> str:
  """Returns means and worst cases of each recipe as a Markdown table."""
  rows = ["| recipe | runs | IoU | worst | volume IoU | colours right | colour error | empty or full | s a run |",
          "|---" * 9 + "|"]
  for name, records in scores.items():
    mean = lambda key: float(np.mean([r[key] for r in records]))  # noqa: E731
    rows.append(f"| `{name}` | {len(records)} | {mean('silhouette_iou'):.3f} "
                f"| {min(r['silhouette_iou'] for r in records):.3f} | {mean('volume_iou'):.3f} "
                f"| {mean('colours_right'):.0%} | {mean('colour_error'):.3f} "
                f"| {sum(r['empty'] or r['full'] for r in records)} | {mean('seconds'):.0f} |")
  return "\n".join(rows)


def main() -> None:
  """Runs the command line."""
  names = (DEFAULT, *recipes_lib.RECIPES)
  # On the shipped prior threestudio_if equals threestudio_sd.
  different = [name for name in names if name != "threestudio_if"]
  chosen = flags.DEFINE_list("recipes", ",".join(different), f"of {', '.join(names)}")
  prompts = flags.DEFINE_integer("prompts", 4, "number of captions", lower_bound=1)
  seeds = flags.DEFINE_integer("seeds", 1, "number of seeds of each caption", lower_bound=1)
  draw = flags.DEFINE_integer("draw", 3, "seed of the drawing of captions")
  out = flags.DEFINE_string("out", "recipe_scores", "folder of the table, the records and the renders")

  def run(argv: Sequence[str]) -> None:
    unknown = [*argv[1:], *sorted(set(chosen.value) - set(names))]
    if unknown or not chosen.value:
      raise ValueError(f"--recipes={','.join(chosen.value)}: {unknown[0] if unknown else ''!r} is none of "
                       f"{', '.join(names)}")
    compilation.prepare()
    specs, folder = draw_captions(prompts.value, draw.value), terminal.user_path(out.value)
    scores = {}
    for name in chosen.value:
      print(f"{name} ...", flush=True)
      scores[name] = run_recipe(name, specs, range(seeds.value), folder / name)
    with files.atomic_write(folder / "table.md") as file:
      file.write(table(scores).encode() + b"\n")
    print(table(scores))
    print(f"renders, records and table are in {folder}")

  app.run(lambda argv: exit_on_user_error(lambda: run(argv)))


if __name__ == "__main__":
  main()
