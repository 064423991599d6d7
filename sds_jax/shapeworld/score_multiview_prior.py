r"""Scores of a prior over four views of an object: samples from known cameras against the traced scenes.

    python -m sds_jax.shapeworld.score_multiview_prior --prior=shapeworld --num=50 --out=scores

A text prior is sampled view by view, a multi-view prior with all views of an object together. Colours, shapes and the
IoU of the silhouettes are those of `score_prior`, averaged over the views. `whole` is the share of objects all of whose
views have the right colours and shapes.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import compilation, terminal
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.files import CheckpointError, write_json
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, flag_types, score_prior
from sds_jax.shapeworld.multiview_recipe import VIEWS
from sds_jax.types import Camera, Params
from sds_jax.views import cameras


def draw_cameras(key: jax.Array, objects: int) -> Camera:
  """Draws VIEWS cameras of each object, leaves [objects * VIEWS, ...], elevations in `score_prior.ELEVATION`.

  Consumes `key`.
  """
  distribution = dataclasses.replace(cameras.CameraDistribution(), elevation=score_prior.ELEVATION)
  count = objects * VIEWS
  return cameras.sample_groups(key, jnp.arange(count), count, VIEWS, stratified=False, distribution=distribution)[0]


def sample(prior: prior_lib.Prior, params: Params, num: int, seed: int, guidance_scale: float = 2.0,
           steps: int = 30) -> tuple[np.ndarray, list[captions.Spec], Camera]:
  """Samples VIEWS views of each of `num` captions, every other with a colour-kind pair absent from training.

  Returns:
    images [num * VIEWS, 64, 64, 3], the captions [num], and the cameras, leaves [num * VIEWS, ...].
  """
  specs = [captions.sample_spec(np.random.default_rng([seed, i]), 0.5, held_out=i % 2 == 1) for i in range(num)]
  k_camera, k_noise = jax.random.split(seeded_key(seed))
  views = draw_cameras(k_camera, num)
  each = [spec for spec in specs for _ in range(VIEWS)]
  return score_prior.sample_views(prior, params, each, views, k_noise, guidance_scale, steps), specs, views


def score(prior: prior_lib.Prior, params: Params, num: int = 50, seed: int = 0, guidance_scale: float = 2.0,
          steps: int = 30) -> tuple[dict[str, float], np.ndarray]:
  """Scores a prior over `num` captions from VIEWS cameras each.

  Args:
    prior, params: a text or multi-view prior with a camera condition.
    num: number of captions.
    seed: of captions, cameras and noise.
    guidance_scale: in the convention of diffusers.
    steps: DDIM steps.

  Returns:
    table of means ("colour_all", "whole_front", "iou_never_seen", ...), samples [num * VIEWS, 64, 64, 3].
  """
  images, specs, views = sample(prior, params, num, seed, guidance_scale, steps)
  results = []
  for i, spec in enumerate(specs):
    scored = [score_prior.score_sample(images[j], spec, jax.tree.map(lambda leaf, j=j: leaf[j], views))
              for j in range(i * VIEWS, (i + 1) * VIEWS)]
    means: dict[str, Any] = {name: np.mean([one[name] for one in scored]) for name in ("colour", "shape", "iou")}
    results.append(means | dict(whole=all(one["colour"] and one["shape"] for one in scored)))
  groups = dict(all=[True] * num, seen=[i % 2 == 0 for i in range(num)], never_seen=[i % 2 == 1 for i in range(num)],
                single=[len(spec.parts) == 1 for spec in specs], stacked=[len(spec.parts) == 2 for spec in specs],
                front=[captions.azimuth_is_fixed(spec) for spec in specs])
  # Few captions can leave a group empty; the table then lacks the group.
  table = {f"{name}_{group}": float(np.mean([r[name] for r, belongs in zip(results, members) if belongs]))
           for group, members in groups.items() if any(members) for name in ("colour", "shape", "iou", "whole")}
  return table, images


def main() -> None:
  """Runs the command line.

  Scores a prior and writes scores.json and samples.png.
  """
  parser = argparse.ArgumentParser(description="Score a ShapeWorld prior over four views of each object.")
  parser.add_argument("--prior", default="shapeworld", help="name or folder of a prior")
  parser.add_argument("--num", type=flag_types.positive, default=50, help="number of captions")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of captions, cameras and noise")
  parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale in diffusers' convention")
  parser.add_argument("--steps", type=flag_types.positive, default=30, help="DDIM steps")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("multiview_scores"),
                      help="folder to write")
  args = parser.parse_args()
  compilation.prepare()
  try:
    prior, params = prior_lib.build(args.prior)
  except CheckpointError as error:
    parser.error(str(error))
  table, images = score(prior, params, args.num, args.seed, args.guidance_scale, args.steps)
  args.out.mkdir(parents=True, exist_ok=True)
  write_json(args.out / "scores.json", table)
  score_prior.write_sheet(args.out / "samples.png", images, columns=2 * VIEWS)
  print(json.dumps(table, indent=2))
  print(f"wrote samples and scores to {args.out}")


if __name__ == "__main__":
  main()
