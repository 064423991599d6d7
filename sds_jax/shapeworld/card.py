"""The model card of a trained text prior: its command, its machine, its loss curve and its scores."""
from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
from typing import Any

import jax

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.files import write_atomically, write_json
from sds_jax.shapeworld import captions, score_prior


def describe_machine() -> str:
  """Describes devices, cores, and versions of Python and jax."""
  device = jax.devices()[0]
  return (f"{len(jax.devices())} x {device.device_kind}, {os.cpu_count()} cores ({platform.machine()}), "
          f"Python {platform.python_version()}, jax {jax.__version__}")


def write_card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None = None,
               num: int = 200) -> None:
  """Scores a trained prior and writes its model card.

  Args:
    run: folder of the run; `run`/prior receives README.md, scores.json, samples.png and metrics.jsonl.
    settings, seed, init: arguments of `train_prior.train`.
    num: number of captions to score.
  """
  folder = run / "prior"
  # Training draws its captions from `seed`; the next seed gives the scores other captions.
  table, images = score_prior.score(*prior_lib.build(folder), num=num, seed=seed + 1)
  score_prior.write_sheet(folder / "samples.png", images[:64])
  write_results(run, table, _card(run, settings, seed, init, num, table))


def write_results(run: pathlib.Path, table: dict[str, float], text: str) -> None:
  """Writes scores.json, metrics.jsonl and README.md into `run`/prior.

  Args:
    run: folder of the run, with metrics.jsonl.
    table: the scores.
    text: the model card.
  """
  folder = run / "prior"
  write_json(folder / "scores.json", table)
  write_atomically(folder / "metrics.jsonl", lambda path: shutil.copyfile(run / "metrics.jsonl", path))
  # Written last: a folder with README.md is complete.
  write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def _card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None, num: int,
          table: dict[str, float]) -> str:
  losses, minutes = loss_table(run)
  scores = "\n".join(
      f"| {group.replace('_', ' ')} | {table['colour_' + group]:.1%} | {table['shape_' + group]:.1%} "
      f"| {table['iou_' + group]:.3f} |" for group in ("all", "seen", "never_seen", "single", "stacked"))
  unseen = ", ".join(sorted(f"{colour} {kind}" for colour, kind in captions.HELD_OUT))
  return f"""# The ShapeWorld text prior

A text-to-image diffusion model of 64x64 images of one solid or two stacked ones. A `UNet2DConditionModel` on 4x4
patches, a `CLIPTextModel` and its tokenizer, in diffusers format, float16. The network predicts the clean image. The
camera is an optional condition, given by `class_labels` and by the rays of the patches in the last 18 input channels
(zeros in both: unknown).

Trained from {f'the prior in {init}' if init else 'random weights'} with

    python -m sds_jax.shapeworld.train_prior --steps={settings['steps']} --batch_size={settings['batch_size']} \\
        --num_images={settings['num_images']} --seed={seed}{f' --init={init}' if init else ''}

on {describe_machine()}, in {minutes:.0f} minutes of training after the images were rendered.
Licence: Apache-2.0. All training images are rendered by `sds_jax.shapeworld`; no other data was used.

{losses}

`metrics.jsonl` holds the whole curve. Scores on {num} captions with known cameras, DDIM, guidance scale 2 (diffusers'
convention), by `python -m sds_jax.shapeworld.score_prior --num={num} --seed={seed + 1}`; the docstring of
`score_prior` defines the scores:

| captions | right colours | right shapes | mean IoU of the silhouette |
|---|---|---|---|
{scores}

Never shown in training: {unseen}.

![samples](samples.png)

The prior covers ShapeWorld captions on plain backgrounds only. Its purposes are a first object without a download,
tests, and research with exact ground truth.
"""


def loss_table(run: pathlib.Path) -> tuple[str, float]:
  """Returns a table of losses and the minutes of training.

  The Markdown table has about eight records of metrics.jsonl.
  """
  records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
  # About eight equally spaced records.
  every = max(len(records) // 8, 1)
  head = "| step | loss (mean since the previous record in `metrics.jsonl`) |\n|---|---|\n"
  rows = "\n".join(f"| {r['step']} | {r['loss']:.4f} |" for r in records[every - 1::every])
  return head + rows, _seconds(records) / 60


def _seconds(records: list[dict[str, float]]) -> float:
  """Adds up the seconds of training over all starts."""
  total = 0.0
  for previous, record in zip(records, records[1:]):
    # `seconds` counts from the latest start of the run, so a smaller value begins a new stretch.
    if record["seconds"] < previous["seconds"]:
      total += previous["seconds"]
  return total + records[-1]["seconds"]
