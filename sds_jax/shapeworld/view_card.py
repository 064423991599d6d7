"""The model card of a trained view prior: what made it, on what machine, how the loss went, what it scores."""
from __future__ import annotations

import pathlib
import shutil
from typing import Any

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.files import write_atomically, write_json
from sds_jax.shapeworld import captions, card, score_prior, score_view_prior


def write_card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None = None,
               num: int = 100) -> None:
  """Score `run`/prior on `num` scenes and put README.md, scores.json, samples.png and metrics.jsonl into it."""
  folder = run / "prior"
  table, images = score_view_prior.score(*prior_lib.build(folder), num=num, seed=seed)
  score_prior.write_sheet(folder / "samples.png", images[:24], columns=6)
  write_json(folder / "scores.json", table)
  write_atomically(folder / "metrics.jsonl", lambda path: shutil.copyfile(run / "metrics.jsonl", path))
  text = _card(run, settings, seed, init, num, table)
  write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def _card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None, num: int,
          table: dict[str, float]) -> str:
  losses, minutes = card.curve(run)
  groups = [name.removeprefix("iou_") for name in table if name.startswith("iou_")]
  scores = "\n".join(
      f"| {group.replace('_', ' ')} | {table['iou_' + group]:.3f} | {table['colour_error_' + group]:.3f} "
      f"| {table['elevation_error_deg_' + group]:.1f} |" for group in groups)
  unseen = ", ".join(sorted(f"{colour} {kind}" for colour, kind in captions.HELD_OUT))
  return f"""# The ShapeWorld view prior

A diffusion model of what a picture's object looks like from another side: Zero-1-to-3 (arXiv:2303.11328) made small. A
`UNet2DConditionModel` on 4x4 patches of 64x64 images, a `CLIPVisionModelWithProjection`, `cc_projection` and
`elevation_head`, in diffusers format, float16. It predicts the clean image. What it is told, and where it differs from
its model, stands in `sds_jax/shapeworld/view_recipe.py`.

Made from {f'the view prior in {init}' if init else "the text prior's U-Net, all else from nothing,"} by

    python -m sds_jax.shapeworld.train_view_prior --steps={settings['steps']} --batch_size={settings['batch_size']} \\
        --num_images={settings['num_images']} --seed={seed} --front_weight={settings['front_weight']:g} \\
        --chair_weight={settings['chair_weight']:g}{f' --init={init}' if init else ''}

on {card.machine()}, in {minutes:.0f} minutes of training after the images were rendered.
Licence: Apache-2.0. The images are traced by `sds_jax.shapeworld`; no other data went in.

{losses}

`metrics.jsonl` holds the whole curve. Scores on three views each of {num} scenes that are in no training set, DDIM,
guidance scale 2 (diffusers' convention), by
`python -m sds_jax.shapeworld.score_view_prior --num={num} --seed={seed}`; its file says how:

| scenes | mean IoU of the silhouette | colour error | error of the elevation, degrees |
|---|---|---|---|
{scores}

Never shown in training: {unseen}.

Picture, truth and sample:

![samples](samples.png)

It knows nothing but this world, pictures on white from elevations of -10 to 50 degrees, and cameras at one distance.
"""
