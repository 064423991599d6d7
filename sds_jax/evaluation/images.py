r"""Image-to-3D over many sample photos and seeds, scored against the exact scenes.

    python -m sds_jax.evaluation.images --photos=12 --seeds=3 --out=image_scores
    python -m sds_jax.evaluation.images --photos=12 --config.loss.sds=0        # without the prior of views

The photos are made by `python -m sds_jax.shapeworld.sample_photos`: single solids, stacks and objects with a front,
half of them with a pair of colour and shape that training never shows. The step is compiled once for all photos.
Settings are overridden as for `run.py`. A stopped command continues after its last finished run.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
import time
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
import numpy as np
import tqdm

from sds_jax import compilation, schema, settings as settings_lib, terminal
from sds_jax.evaluation import image_scores
from sds_jax.evaluation.record_log import Record, RecordLog, run_inputs
from sds_jax.evaluation.repeated import RepeatedRuns
from sds_jax.evaluation.shapeworld import exit_on_user_error
from sds_jax.io import files, images, photos
from sds_jax.priors.prior import Prior
from sds_jax.schema import ConfigError
from sds_jax.shapeworld import captions, sample_photos, solids
from sds_jax.tasks import outputs, photo as photo_lib
from sds_jax.tasks.image3d import Image3DTask
from sds_jax.training.layout import make_layout
from sds_jax.training.versions import versions
from sds_jax.types import Params

GROUPS: dict[str, Callable[[Record], bool]] = {
    "all": lambda r: True,
    "single": lambda r: r["parts"] == 1 and r["plain"],
    "stacked": lambda r: r["parts"] == 2,
    "with a front": lambda r: not r["plain"],
    "never seen": lambda r: r["never_seen"],
}
COLUMNS = {
    "PSNR of the photo": ("reference_psnr", "{:.1f}"), "IoU": ("silhouette_iou", "{:.3f}"),
    "seen side": ("seen_iou", "{:.3f}"), "unseen side": ("unseen_iou", "{:.3f}"),
    "volume IoU": ("volume_iou", "{:.3f}"),
    "colours right": ("colours_right", "{:.0%}"), "unseen colours right": ("unseen_colours_right", "{:.0%}"),
    "colour error": ("colour_error", "{:.3f}"), "s a run": ("seconds", "{:.0f}")}
"""Title of a column -> (name of the score whose mean the column shows, format)."""


def draw_truths(count: int, seed: int) -> list[sample_photos.Truth]:
  """Returns `count` truths.

  A single solid, a stack and an object with a front in turn; every second trio was never seen.
  """
  kinds: dict[int, Callable[[captions.Spec], bool]] = {
      0: lambda spec: len(spec.parts) == 1 and spec.parts[0][1] in solids.PLAIN,
      1: lambda spec: len(spec.parts) == 2,
      2: lambda spec: spec.parts[0][1] not in solids.PLAIN}
  truths, index = [], 0
  while len(truths) < count:
    truth = sample_photos.draw_truth(seed, index)
    index += 1
    spec = captions.parse(truth.caption)
    if kinds[len(truths) % 3](spec) and captions.is_held_out(spec) == (len(truths) // 3 % 2 == 1):
      truths.append(truth)
  return truths


def run_set(task: Image3DTask, priors: tuple[Prior, Prior | None, Params],
            truths: Sequence[sample_photos.Truth], seeds: Sequence[int], log: RecordLog) -> list[Record]:
  """Returns the scores of every photo with every seed.

  Writes photos and a strip of renders of each to the log's folder. Runs that the log holds are not repeated.

  Args:
    task: with its settings; a second prior is conditioned on the caption of each photo, whatever `prompt` is.
    priors: of `Image3DTask.load_priors`.
    truths: of the sample photos.
    seeds: of each photo.
    log: of the records.
  """
  prior, second, params = priors
  settings = task.settings
  program = task.program(prior, second, {})
  layout = make_layout(settings.parallel, settings.training.views, program.together)
  # One program for all photos: they differ in its arguments only.
  runs = RepeatedRuns(program, layout, params, settings.training.steps)
  records = []
  with tqdm.tqdm(total=len(truths) * len(seeds), desc="runs") as bar:
    for number, truth in enumerate(truths):
      path = sample_photos.write_photo(truth, 256, log.folder / f"{number:03d}.png")
      photo, arrays = photo_lib.read_input(str(path), settings.picture, settings.render)
      data = photo_lib.encode_photo(settings.picture, prior, arrays)
      conditions = task.embed(second, data, truth.caption)
      for seed in seeds:
        key = dict(files.to_jsonable(truth._asdict()), picture=path.name, seed=seed)
        record = log.find(**key)
        records.append(record or _score_run(runs, task, truth, photo, data, conditions, key, log))
        bar.update()
        if not record:
          bar.write("{silhouette_iou:.3f} iou  {unseen_iou:.3f} unseen  {reference_psnr:4.1f} dB  {seconds:5.1f} s  "
                    "{caption} ({seed})".format_map(records[-1]))
  return records


def _score_run(runs: RepeatedRuns, task: Image3DTask, truth: sample_photos.Truth, photo: photos.Photo,
               data: dict[str, Any], conditions: Any, key: Record, log: RecordLog) -> Record:
  """Returns the scores of one run of a photo, added to the log, with a strip of renders in its folder.

  Args:
    runs: the compiled program.
    task: with its settings.
    truth: of the photo.
    photo: as it was read.
    data: of `encode_photo`.
    conditions: of `Image3DTask.embed`.
    key: identifies the record: the truth, the photo's file, the seed.
    log: of the records.
  """
  started = time.perf_counter()
  state = runs.optimise(conditions, key["seed"])
  # Scored after `seconds` is taken: the time is that of the run alone.
  seconds = time.perf_counter() - started
  scores = image_scores.score(runs.generator, task.settings.camera, state, truth, photo, float(data["azimuth"]),
                              float(data["elevation"]))
  spec = captions.parse(truth.caption)
  record = dict(key, parts=len(spec.parts), never_seen=captions.is_held_out(spec),
                plain=all(kind in solids.PLAIN for _, kind in spec.parts), seconds=seconds,
                told_elevation_deg=float(np.degrees(data["elevation"])), **scores)
  strip = outputs.render_row(task.view, state, 6)
  first = photos.resize_square(photo.rgb, task.settings.export.image_size)
  images.write_png(np.concatenate([first, strip[:first.shape[0]]], axis=1),
                   log.folder / f"{Path(key['picture']).stem}-{key['seed']}.png")
  log.append(record)
  return record


def table(records: Sequence[Record]) -> str:
  """Returns means and worst cases of each group as a Markdown table."""
  lines = ["| photos | runs | " + " | ".join(COLUMNS) + " | worst view |", "|---" * (len(COLUMNS) + 3) + "|"]
  for name, belongs in GROUPS.items():
    group = [r for r in records if belongs(r)]
    if group:
      means = [how.format(float(np.mean([r[key] for r in group]))) for key, how in COLUMNS.values()]
      worst = min(r["worst_view_iou"] for r in group)
      lines.append(f"| {name} | {len(group)} | {' | '.join(means)} | {worst:.3f} |")
  return "\n".join(lines)


def _run(config: ConfigDict, truths: Sequence[sample_photos.Truth], seeds: Sequence[int],
         folder: Path) -> None:
  """Runs the set, and writes its records and its table to `folder`."""
  compilation.prepare()
  task = Image3DTask(settings_lib.validate(config))
  for name in ("depth", "normals"):
    if value := getattr(task.settings.picture, name):
      raise ConfigError(f"config.picture.{name}={value!r} is a map of one photo, and this command has many photos: "
                        "leave the map out")
  priors = task.load_priors()
  where = task.settings.prior.path or task.settings.prior.name
  log = RecordLog(folder, run_inputs(schema.to_dict(task.settings), where))
  records = run_set(task, priors, truths, seeds, log)
  files.write_json(dict(config=schema.to_dict(task.settings), versions=versions(), records=records),
                   folder / "records.json")
  (folder / "table.md").write_text(table(records) + "\n", encoding="utf-8")
  print(table(records))
  print(f"photos, renders, records and table are in {folder}")


def main() -> None:
  """Runs the command line."""
  config = config_flags.DEFINE_config_dict("config", settings_lib.defaults("image3d"))
  count = flags.DEFINE_integer("photos", 12, "number of photos", lower_bound=1)
  flags.DEFINE_alias("pictures", "photos")  # the name of version 0.1.0
  seeds = flags.DEFINE_integer("seeds", 3, "number of seeds of each photo", lower_bound=1)
  draw = flags.DEFINE_integer("draw", 1, "seed of the choice of photos")
  out = flags.DEFINE_string("out", "image_scores", "folder of the table, the records, photos and renders")

  app.run(lambda argv: exit_on_user_error(lambda: _run(
    config.value, draw_truths(count.value, draw.value), range(seeds.value), terminal.user_path(out.value))))


if __name__ == "__main__":
  main()
