r"""The published recipes beside the package's own settings: the shipped prior, the same captions, one table.

    python -m sds_jax.evaluation.recipes --prompts=4 --out=recipe_scores

A recipe is run with what its file says of the prior `shapeworld`. Each compiles once; one whose records lie in the
folder already, of the same settings, captions, versions and prior, is not run again, so that a command that was
stopped goes on.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from sds_jax import compilation, schema, settings as settings_lib
from sds_jax.evaluation.shapeworld import CaptionRuns, Record, draw_captions, exit_on_user_error, run_set
from sds_jax.io import files
from sds_jax.priors.sources import shipped_folder
from sds_jax.settings.recipes import text3d as recipes_lib
from sds_jax.shapeworld import captions
from sds_jax.tasks.text3d import Text3DTask
from sds_jax.training.versions import versions

DEFAULT = "default"
"""What the package's own settings are called in the table."""


def run_recipe(name: str, specs: Sequence[captions.Spec], seeds: Sequence[int], folder: Path) -> list[Record]:
  """Scores of one recipe (of `RECIPES`, or DEFAULT) on the shipped prior; records and renders go to `folder`.

  Raises:
    ConfigError, CheckpointError: see `settings.validate` and `Text3DTask.load_prior`.
  """
  config = recipes_lib.from_words("shapeworld" if name == DEFAULT else f"{name},shapeworld")
  config.parallel.devices = 1  # its few views would not fill more
  return run_task(Text3DTask(settings_lib.validate(config)), specs, seeds, folder)


def run_task(task: Text3DTask, specs: Sequence[captions.Spec], seeds: Sequence[int],
               folder: Path) -> list[Record]:
  """Scores of validated settings; those that lie in `folder`, of the same settings and runs, are not made again.

  Raises:
    ConfigError, CheckpointError: see `Text3DTask.load_prior`.
  """
  made = files.to_jsonable(dict(config=schema.to_dict(task.settings), versions=versions(),
                          prior=_fingerprint(task.settings.prior.path or task.settings.prior.name),
                          runs=[(captions.caption(spec), seed) for spec in specs for seed in seeds]))
  stored = files.read_json(folder / "records.json")
  if {name: stored.get(name) for name in made} == made:
    return stored["records"]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "records.jsonl").unlink(missing_ok=True)
  records = run_set(CaptionRuns(task, *task.load_prior()), specs, seeds, folder)
  files.write_json(dict(made, records=records), folder / "records.json")
  return records


def _fingerprint(name: str) -> str:
  """Of the U-Net's weights in the prior's folder, where that is known: the prior that ships, or a folder."""
  digest = hashlib.sha256()
  for weights in sorted((shipped_folder() if name == "shapeworld" else Path(name)).glob("unet/*.safetensors")):
    digest.update(weights.read_bytes())
  return digest.hexdigest()[:16]


def table(found: dict[str, list[Record]]) -> str:
  """Means and worst cases of each recipe, as a Markdown table."""
  rows = ["| recipe | runs | IoU | worst | volume IoU | colours right | colour error | empty or full | s a run |",
          "|---" * 9 + "|"]
  for name, records in found.items():
    mean = lambda key: float(np.mean([r[key] for r in records]))  # noqa: E731
    rows.append(f"| `{name}` | {len(records)} | {mean('silhouette_iou'):.3f} "
                f"| {min(r['silhouette_iou'] for r in records):.3f} | {mean('volume_iou'):.3f} "
                f"| {mean('colours_right'):.0%} | {mean('colour_error'):.3f} "
                f"| {sum(r['empty'] or r['full'] for r in records)} | {mean('seconds'):.0f} |")
  return "\n".join(rows)


def main() -> None:
  """Command line."""
  names = (DEFAULT, *recipes_lib.RECIPES)
  different = [name for name in names if name != "threestudio_if"]  # on the shipped prior it is threestudio_sd
  chosen = flags.DEFINE_list("recipes", ",".join(different), f"of {', '.join(names)}")
  prompts = flags.DEFINE_integer("prompts", 4, "captions", lower_bound=1)
  seeds = flags.DEFINE_integer("seeds", 1, "seeds of each caption", lower_bound=1)
  draw = flags.DEFINE_integer("draw", 3, "seed of the drawing of captions")
  out = flags.DEFINE_string("out", "recipe_scores", "folder of the table, the records and the renders")

  def run(argv: Sequence[str]) -> None:
    unknown = [*argv[1:], *sorted(set(chosen.value) - set(names))]
    if unknown or not chosen.value:
      raise ValueError(f"--recipes={','.join(chosen.value)}: {unknown[0] if unknown else ''!r} is none of "
                       f"{', '.join(names)}")
    compilation.prepare()
    specs, folder = draw_captions(prompts.value, draw.value), Path(out.value)
    found = {}
    for name in chosen.value:
      print(f"{name} ...", flush=True)
      found[name] = run_recipe(name, specs, range(seeds.value), folder / name)
    with files.atomic_write(folder / "table.md") as file:
      file.write(table(found).encode() + b"\n")
    print(table(found))
    print(f"renders, records and table lie in {folder}")

  app.run(lambda argv: exit_on_user_error(lambda: run(argv)))


if __name__ == "__main__":
  main()
