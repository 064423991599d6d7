"""The model card of a trained view prior: its command, its machine, its loss curve and its scores."""
from __future__ import annotations

import pathlib
from typing import Any

from sds_jax.priors import prior as prior_lib
from sds_jax.shapeworld import captions, card, score_prior, score_view_prior


def write_card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None = None,
               num: int = 100) -> None:
  """Scores a trained view prior and writes its model card.

  Args:
    run: folder of the run; `run`/prior receives README.md, scores.json, samples.png and metrics.jsonl.
    settings, seed, init: arguments of `train_view_prior.train`.
    num: number of scenes to score.
  """
  folder = run / "prior"
  # `score_view_prior.SEED` separates these scenes from every training set, so the run's own seed is safe here.
  table, images = score_view_prior.score(*prior_lib.build(folder), num=num, seed=seed)
  score_prior.write_sheet(folder / "samples.png", images[:24], columns=6)
  # The sheet shows the first 24 scenes; the scores use all.
  card.write_results(run, table, _card(run, settings, seed, init, num, table))


def _card(run: pathlib.Path, settings: dict[str, Any], seed: int, init: pathlib.Path | None, num: int,
          table: dict[str, float]) -> str:
  losses, minutes = card.loss_table(run)
  # A group without a scene has no key in the table, and so no row.
  groups = [name.removeprefix("iou_") for name in table if name.startswith("iou_")]
  scores = "\n".join(
      f"| {group.replace('_', ' ')} | {table['iou_' + group]:.3f} | {table['colour_error_' + group]:.3f} "
      f"| {table['elevation_error_deg_' + group]:.1f} |" for group in groups)
  unseen = ", ".join(sorted(f"{colour} {kind}" for colour, kind in captions.HELD_OUT))
  return f"""# The ShapeWorld view prior

A diffusion model of other views of the object in a photo: a small Zero-1-to-3 (arXiv:2303.11328). A
`UNet2DConditionModel` on 4x4 patches of 64x64 images, a `CLIPVisionModelWithProjection`, `cc_projection` and
`elevation_head`, in diffusers format, float16. The network predicts the clean image.
`sds_jax/shapeworld/view_recipe.py` lists its conditions and its differences from Zero-1-to-3.

Trained from {f'the view prior in {init}' if init else "the text prior's U-Net, all other weights random,"} with

    python -m sds_jax.shapeworld.train_view_prior --steps={settings['steps']} --batch_size={settings['batch_size']} \\
        --num_images={settings['num_images']} --seed={seed} --front_weight={settings['front_weight']:g} \\
        --chair_weight={settings['chair_weight']:g}{f' --init={init}' if init else ''}

on {card.describe_machine()}, in {minutes:.0f} minutes of training after the images were rendered.
Licence: Apache-2.0. All training images are rendered by `sds_jax.shapeworld`; no other data was used.

{losses}

`metrics.jsonl` holds the whole curve. Scores on three views each of {num} scenes outside all training sets, DDIM,
guidance scale 2 (diffusers' convention), by
`python -m sds_jax.shapeworld.score_view_prior --num={num} --seed={seed}`; the docstring of
`score_view_prior` defines the scores:

| scenes | mean IoU of the silhouette | colour error | error of the elevation, degrees |
|---|---|---|---|
{scores}

Never shown in training: {unseen}.

Photo, true view and sample:

![samples](samples.png)

The prior covers ShapeWorld only: photos on white from elevations of -10 to 50 degrees, and cameras at a single
distance.
"""
