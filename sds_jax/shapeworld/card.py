"""The model card of a trained prior: what made it, on what machine, how the loss went, what it scores."""
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


def machine() -> str:
  """Kind and number of the devices and cores at hand, and the versions that matter."""
  device = jax.devices()[0]
  return (f"{len(jax.devices())} x {device.device_kind}, {os.cpu_count()} cores ({platform.machine()}), "
          f"Python {platform.python_version()}, jax {jax.__version__}")


def write_card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None = None,
               num: int = 200) -> None:
  """Score `run`/prior on `num` captions and put README.md, scores.json, samples.png and metrics.jsonl into it."""
  folder = run / "prior"
  table, images = score_prior.score(*prior_lib.build(folder), num=num, seed=seed + 1)
  score_prior.write_sheet(folder / "samples.png", images[:64])
  write_json(folder / "scores.json", table)
  write_atomically(folder / "metrics.jsonl", lambda path: shutil.copyfile(run / "metrics.jsonl", path))
  text = _card(run, settings, seed, init, num, table)
  write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def _card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None, num: int,
          table: dict[str, float]) -> str:
  losses, minutes = curve(run)
  scores = "\n".join(
      f"| {group.replace('_', ' ')} | {table['colour_' + group]:.1%} | {table['shape_' + group]:.1%} "
      f"| {table['iou_' + group]:.3f} |" for group in ("all", "seen", "never_seen", "single", "stacked"))
  unseen = ", ".join(sorted(f"{colour} {kind}" for colour, kind in captions.HELD_OUT))
  return f"""# The ShapeWorld text prior

A text-to-image diffusion model of 64x64 images of one solid or two stacked ones. A `UNet2DConditionModel` on 4x4
patches, a `CLIPTextModel` and its tokenizer, in diffusers format, float16. It predicts the clean image. It can be told
the camera, by `class_labels` and by the rays of its patches in the last 18 input channels (zeros in both: unknown).

Made from {f'the prior in {init}' if init else 'nothing'} by

    python -m sds_jax.shapeworld.train_prior --steps={settings['steps']} --batch_size={settings['batch_size']} \\
        --num_images={settings['num_images']} --seed={seed}{f' --init={init}' if init else ''}

on {machine()}, in {minutes:.0f} minutes of training after the images were rendered.
Licence: Apache-2.0. The images are traced by `sds_jax.shapeworld`; no other data went in.

{losses}

`metrics.jsonl` holds the whole curve. Scores on {num} captions with told cameras, DDIM, guidance scale 2 (diffusers'
convention), by `python -m sds_jax.shapeworld.score_prior --num={num} --seed={seed + 1}`; its file says how:

| captions | right colours | right shapes | mean IoU of the silhouette |
|---|---|---|---|
{scores}

Never shown in training: {unseen}.

![samples](samples.png)

It knows nothing but this world, and only plain backgrounds; it is there to make the first object without a download,
for tests, and as a test bed with exact ground truth.
"""


def curve(run: pathlib.Path) -> tuple[str, float]:
  """Some of the records of a run's metrics.jsonl as a table, and the minutes that it took."""
  records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
  every = max(len(records) // 8, 1)
  head = "| step | loss (mean since the record before in `metrics.jsonl`) |\n|---|---|\n"
  rows = "\n".join(f"| {r['step']} | {r['loss']:.4f} |" for r in records[every - 1::every])
  return head + rows, _seconds(records) / 60


def _seconds(records: list[dict[str, float]]) -> float:
  """Time spent in training: `seconds` starts anew when a run goes on after a stop, so falls begin a new stretch."""
  total = 0.0
  for before, now in zip(records, records[1:]):
    if now["seconds"] < before["seconds"]:
      total += before["seconds"]
  return total + records[-1]["seconds"]
