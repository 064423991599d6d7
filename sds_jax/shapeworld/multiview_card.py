"""The model card of a trained multi-view prior: its command, its machine, its loss curve and its scores."""
from __future__ import annotations

import pathlib
from typing import Any

from sds_jax.priors import prior as prior_lib
from sds_jax.shapeworld import captions, card, score_multiview_prior, score_prior
from sds_jax.shapeworld.multiview_recipe import VIEWS


def write_card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None = None,
               num: int = 50) -> None:
  """Scores a trained multi-view prior and writes its model card.

  Args:
    run: folder of the run; `run`/prior receives README.md, scores.json, samples.png and metrics.jsonl.
    settings, seed, init: arguments of `train_multiview_prior.train`.
    num: number of captions to score.
  """
  folder = run / "prior"
  # Training draws its captions from `seed`; the next seed gives the scores other captions.
  table, images = score_multiview_prior.score(*prior_lib.build(folder), num=num, seed=seed + 1)
  score_prior.write_sheet(folder / "samples.png", images[:16 * VIEWS], columns=2 * VIEWS)
  card.write_results(run, table, _card(run, settings, seed, init, num, table))


def _card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None, num: int,
          table: dict[str, float]) -> str:
  losses, minutes = card.loss_table(run)
  # A group without a caption has no key in the table, and so no row.
  groups = [name.removeprefix("iou_") for name in table if name.startswith("iou_")]
  scores = "\n".join(
      f"| {group.replace('_', ' ')} | {table['colour_' + group]:.1%} | {table['shape_' + group]:.1%} "
      f"| {table['iou_' + group]:.3f} | {table['whole_' + group]:.1%} |" for group in groups)
  unseen = ", ".join(sorted(f"{colour} {kind}" for colour, kind in captions.HELD_OUT))
  return f"""# The ShapeWorld multi-view prior

A small MVDream: a text-to-image diffusion model of four 64x64 views of an object, 90 degrees apart at a common
elevation, distance and field of view. The networks are those of the text prior, in diffusers format, float16; the
self-attention of the U-Net covers the tokens of all four views (`views` in model_index.json). The cameras are a
condition of each view, and a group of four views has one t.

Trained from {f'the prior in {init}' if init else 'the shipped text prior'} with

    python -m sds_jax.shapeworld.train_multiview_prior --steps={settings['steps']} \\
        --batch_size={settings['batch_size']} --num_images={settings['num_images']} --seed={seed}\
{f' --init={init}' if init else ''}

on {card.describe_machine()}, in {minutes:.0f} minutes of training after the images were rendered.
Licence: Apache-2.0. All training images are rendered by `sds_jax.shapeworld`; no other data was used.

{losses}

`metrics.jsonl` holds the whole curve. Scores on {num} captions of four views each, DDIM, guidance scale 2 (diffusers'
convention), by `python -m sds_jax.shapeworld.score_multiview_prior --num={num} --seed={seed + 1}`; the docstrings of
`score_multiview_prior` and `score_prior` define the scores:

| captions | right colours | right shapes | mean IoU of the silhouette | all four views right |
|---|---|---|---|---|
{scores}

Never shown in training: {unseen}.

![samples](samples.png)

The prior covers ShapeWorld captions on plain backgrounds only.
"""
