r"""Text-to-3D over many captions and seeds, scored against the exact scenes.

    python -m sds_jax.evaluation.shapeworld --prompts=8 --seeds=3 --out=scores

Half of the captions have a pair of colour and shape that training never shows, and half of either kind are stacks of
two. The step is compiled once for all captions. Settings are overridden as for `run.py`
(`--config.training.steps=300`). A stopped command continues after its last finished run.
"""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sds_jax import compilation, schema, settings as settings_lib, terminal
from sds_jax.evaluation import scores as scoring
from sds_jax.evaluation.record_log import Record, RecordLog, run_inputs
from sds_jax.evaluation.repeated import RepeatedRuns
from sds_jax.io import files, images
from sds_jax.priors.prior import Prior
from sds_jax.shapeworld import captions, solids
from sds_jax.tasks import outputs
from sds_jax.tasks.text3d import Text3DTask
from sds_jax.training.layout import make_layout
from sds_jax.training.state import TrainState
from sds_jax.training.versions import versions
from sds_jax.types import Params

GROUPS: dict[str, Callable[[Record], bool]] = {
    "all": lambda r: True,
    "plain solids": lambda r: r["plain"],
    "with a front": lambda r: not r["plain"],
    "single": lambda r: r["parts"] == 1,
    "stacked": lambda r: r["parts"] == 2,
    "seen pairs": lambda r: not r["never_seen"],
    "never seen": lambda r: r["never_seen"],
}

COLUMNS: dict[str, tuple[str, str, Callable[[np.ndarray], float]]] = {
    "IoU": ("silhouette_iou", "{:.3f}", np.mean),
    "worst": ("silhouette_iou", "{:.3f}", np.min),
    "under 0.5": ("silhouette_iou", "{:.0%}", lambda ious: np.mean(ious < 0.5)),
    "IoU, scaled": ("silhouette_iou_scaled", "{:.3f}", np.mean),
    "volume IoU": ("volume_iou", "{:.3f}", np.mean),
    "colours right": ("colours_right", "{:.0%}", np.mean),
    "colour error": ("colour_error", "{:.3f}", np.mean),
    "false fronts": ("false_fronts", "{:.0%}", np.mean),
    "Chamfer": ("chamfer", "{:.2%}", np.mean),
    "normals": ("normal_error_deg", "{:.1f}°", np.mean),
    "volume": ("volume_error", "{:+.0%}", np.mean),
    "below base": ("below_base", "{:.3f}", np.mean),
    "empty or full": ("empty_or_full", "{:.0f}", np.sum),
    "s a run": ("seconds", "{:.0f}", np.mean)}
"""Title -> (key of the records, format, what is taken of all records of a group)."""


def draw_captions(count: int, seed: int = 1) -> list[captions.Spec]:
  """Returns `count` different captions, singles and stacks in turn.

  Half of either kind were never seen in training.

  Few singles were never seen; when these are used up, stacks take their place.

  Raises:
    ValueError: `count` exceeds the number of captions.
  """
  pools: dict[tuple[bool, bool], list[captions.Spec]] = {}
  for spec in captions.all_specs():
    pools.setdefault((len(spec.parts) == 2, captions.is_held_out(spec)), []).append(spec)
  if count > sum(map(len, pools.values())):
    raise ValueError(f"count={count} exceeds the number of captions: at most {sum(map(len, pools.values()))} are legal")
  rng = np.random.default_rng(seed)
  pools = {kind: [pool[i] for i in rng.permutation(len(pool))] for kind, pool in pools.items()}
  chosen: list[captions.Spec] = []
  for i in range(count):
    wanted = (i % 2 == 1, i // 2 % 2 == 1)
    # In order of preference: the kind itself, then stacks, then singles of the other half.
    choices = [wanted, (True, wanted[1]), (True, not wanted[1]), (False, not wanted[1])]
    chosen.append(next(pools[kind] for kind in choices if pools[kind]).pop())
  return chosen


class CaptionRuns(RepeatedRuns):
  """Runs of text-to-3D for any number of captions and seeds; see `RepeatedRuns`."""

  def __init__(self, task: Text3DTask, prior: Prior, prior_params: Params):
    """Makes the program; see `RepeatedRuns`."""
    program, training = task.program(prior), task.settings.training
    layout = make_layout(task.settings.parallel, training.views, program.together)
    super().__init__(program, layout, prior_params, training.steps)
    self.task, self._prior = task, prior

  def begin(self, prompt: str, seed: int) -> tuple[TrainState, tuple]:
    """Returns the state before the first step, and the other arguments of `advance`."""
    return super().begin(self.task.embed(self._prior, prompt), seed)


def run_set(runs: CaptionRuns, specs: Sequence[captions.Spec], seeds: Sequence[int],
            log: RecordLog | None = None) -> list[Record]:
  """Returns the scores of every caption with every seed.

  With a log, runs that it holds are not repeated, and a strip of renders of each new run is written to its folder.
  """
  records = []
  with tqdm.tqdm(total=len(specs) * len(seeds), desc="runs") as bar:
    for spec in specs:
      for seed in seeds:
        record = log.find(prompt=captions.caption(spec), seed=seed) if log else None
        records.append(record or _score_run(runs, spec, seed, log))
        bar.update()
        if not record:
          bar.write("{silhouette_iou:.3f} iou  {colour_error:.3f} colour error  {seconds:5.1f} s  {prompt} ({seed})"
                    .format_map(records[-1]))
  return records


def _score_run(runs: CaptionRuns, spec: captions.Spec, seed: int, log: RecordLog | None) -> Record:
  """Returns the scores of one run; adds them to the log, with a strip of renders in its folder."""
  prompt, started = captions.caption(spec), time.perf_counter()
  state = runs.optimise(prompt, seed)
  # Before scoring: the time is that of the run alone.
  seconds = time.perf_counter() - started
  # A run of several particles is scored by its first.
  state = outputs.pick_object(state, runs.generator.particles, 0)
  record = dict(prompt=prompt, seed=seed, parts=len(spec.parts), never_seen=captions.is_held_out(spec),
                plain=all(kind in solids.PLAIN for _, kind in spec.parts), seconds=seconds,
                **scoring.score(runs.generator, state, spec))
  if log:
    images.write_png(outputs.render_row(runs.task.view, state, 6),
                     log.folder / f"{files.prompt_slug(prompt)}-{seed}.png")
    log.append(record)
  return record


def table(records: Sequence[Record]) -> str:
  """Returns means and worst cases of each group as a Markdown table.

  Only captions that fix the azimuth have a share of false fronts, and only objects with a mesh its scores. A column
  without any record is left out.
  """
  records = [dict(r, empty_or_full=r["empty"] or r["full"]) for r in records]
  columns = {title: column for title, column in COLUMNS.items() if any(column[0] in r for r in records)}
  rows = [f"| captions | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
  for name, belongs in GROUPS.items():
    group = [r for r in records if belongs(r)]
    if group:
      rows.append(f"| {name} | {len(group)} | {' | '.join(_cell(group, *column) for column in columns.values())} |")
  return "\n".join(rows)


def _cell(group: Sequence[Record], key: str, form: str, reduce: Callable[[np.ndarray], float]) -> str:
  values = np.array([record[key] for record in group if key in record], float)
  return form.format(reduce(values)) if len(values) else "–"


def _run(config: ConfigDict, specs: Sequence[captions.Spec], seeds: Sequence[int], folder: Path) -> None:
  """Runs the set, and writes its records and its table to `folder`."""
  compilation.prepare()
  task = Text3DTask(settings_lib.validate(config))
  prior, params = task.load_prior()
  where = task.settings.prior.path or task.settings.prior.name
  log = RecordLog(folder, run_inputs(schema.to_dict(task.settings), where))
  records = run_set(CaptionRuns(task, prior, params), specs, seeds, log)
  files.write_json(dict(config=schema.to_dict(task.settings), versions=versions(), records=records),
                   folder / "records.json")
  (folder / "table.md").write_text(table(records) + "\n", encoding="utf-8")
  print(table(records))
  print(f"renders, records and table are in {folder}")


def exit_on_user_error(action: Callable[[], None]) -> None:
  """Calls action; ValueError and OSError become one stderr line and status 2.

  With SDS_JAX_TRACEBACK set in the environment the exception is raised instead.
  """
  terminal.show_any_text()
  logging.set_verbosity(logging.ERROR)  # JAX warns of each backend that is not installed
  try:
    action()
  except (ValueError, OSError) as error:
    if os.environ.get("SDS_JAX_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
  """Runs the command line."""
  config = config_flags.DEFINE_config_dict("config", settings_lib.defaults("text3d"))
  prompts = flags.DEFINE_integer("prompts", 8, "number of captions", lower_bound=1)
  seeds = flags.DEFINE_integer("seeds", 3, "number of seeds of each caption", lower_bound=1)
  draw = flags.DEFINE_integer("draw", 1, "seed of the drawing of captions")
  out = flags.DEFINE_string("out", "shapeworld_scores", "folder of the table, the records and the renders")

  app.run(lambda argv: exit_on_user_error(lambda: _run(
    config.value, draw_captions(prompts.value, draw.value), range(seeds.value), terminal.user_path(out.value))))


if __name__ == "__main__":
  main()
