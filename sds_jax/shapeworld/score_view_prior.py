r"""Scores of a view prior: sampled views of the object in a photo against the traced scenes.

    python -m sds_jax.shapeworld.score_view_prior --prior=shapeworld-views --num=200 --out=view_scores

In each scene the first view of `view_dataset` is the photo, the condition of the prior, and the other views are the
targets. No scene is part of a training set, and every second scene has a colour-kind pair absent from training.
"""
from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import compilation, terminal
from sds_jax.priors import photo as photo_lib, prior as prior_lib
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.files import CheckpointError, write_json
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, flag_types, scenes, solids, view_dataset
from sds_jax.shapeworld.sample_photos import ROOT_SEED
from sds_jax.shapeworld.score_prior import foreground, write_sheet
from sds_jax.types import Array, Params
from sds_jax.views import poses

SIZE = 64
"""Size of the traced views, pixels a side."""
SEED = np.uint32(ROOT_SEED + 1)
"""Root of the keys of the scenes, different from all training sets and from sample photos."""


def draw_scenes(num: int, seed: int) -> tuple[list[captions.Spec], np.ndarray, np.ndarray]:
  """Draws and renders `num` scenes.

  Returns:
    specs [num], views [num, VIEWS, 64, 64, 4] uint8, angles [num, VIEWS, 2] (azimuth and elevation, radians).
  """
  specs = [captions.sample_spec(np.random.default_rng([int(SEED), seed, i]), held_out=i % 2 == 1,
                                weights=view_dataset.KIND_WEIGHTS) for i in range(num)]
  stacked = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec in specs])
  # Seeds share the root key, so each seed takes a block of 100,000 indices of the "data set" SEED.
  numbers = np.arange(num, dtype=np.uint32) + np.uint32(seed * 100_000 % 2**32)
  images, angles = jax.device_get(view_dataset.render_batch(SEED, numbers, stacked))
  return specs, images, angles


def sample_views(prior: prior_lib.Prior, params: Params, photos: np.ndarray, pose: Array, key: Array,
                 guidance_scale: float, steps: int, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
  """Samples views of the objects in photos.

  Args:
    prior, params: a prior with a photo as its condition.
    photos: [n, 64, 64, 3] on white, in [0, 1].
    pose: [n, V, POSE_DIM] of the views, relative to the photos.
    key: consumed; each batch folds in its first index.
    guidance_scale: in the convention of diffusers.
    steps: DDIM steps.
    batch: views per call.

  Returns:
    views [n, V, 64, 64, 3], estimated elevations [n] of the photos, radians.
  """
  encoded = [prior.photo.encode(jnp.asarray(photo)) for photo in photos]
  cond = [prior.photo.conditions(params, photo, poses_of_photo) for photo, poses_of_photo in zip(encoded, pose)]
  cond = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cond)
  run = jax.jit(lambda p, c, k: ddim(prior, p, c, photo_lib.null_condition(c), k, steps, guidance_scale),
                compiler_options=compilation.unet_options())
  count, images = pose.shape[0] * pose.shape[1], []
  for start in range(0, count, batch):
    # The last batch repeats the last view, so that the sampler compiles once.
    chosen = np.minimum(np.arange(start, start + batch), count - 1)
    out = run(params, jax.tree.map(lambda leaf: leaf[chosen], cond), jax.random.fold_in(key, start))
    images.append(np.asarray(out)[:count - start])
  elevations = np.array([float(photo["elevation"]) for photo in encoded])
  return np.concatenate(images).reshape(*pose.shape[:2], *images[0].shape[1:]), elevations


def score(prior: prior_lib.Prior, params: Params, num: int = 100, seed: int = 0, guidance_scale: float = 2.0,
          steps: int = 30) -> tuple[dict[str, float], np.ndarray]:
  """Scores a view prior over `num` scenes.

  iou compares the silhouettes of sample and scene. colour_error is the mean absolute RGB difference inside both
  silhouettes. elevation_error_deg is the error of the elevation estimated from the photo.

  Args:
    prior, params: a prior with a photo as its condition.
    num: number of scenes, of three target views each.
    seed: of scenes and noise.
    guidance_scale: in the convention of diffusers.
    steps: DDIM steps.

  Returns:
    table of means ("iou_all", "colour_error_stacked", ...), rows of photo, true view and sample [num, 64, 192, 3].
  """
  specs, images, angles = draw_scenes(num, seed)
  colours, opacity = images[..., :3] / 255.0, images[..., 3:] / 255.0
  # The images are premultiplied, so white is added in proportion to the transparency.
  white = (colours + 1.0 - opacity).astype(np.float32)
  azimuth, elevation = jnp.moveaxis(jnp.asarray(angles), -1, 0)
  pose = poses.relative_pose(elevation[:, 1:], azimuth[:, 1:], elevation[:, :1], azimuth[:, :1])
  samples, estimates = sample_views(prior, params, white[:, 0], pose, seeded_key(seed), guidance_scale, steps)
  records = []
  for i, spec in enumerate(specs):
    for view in range(samples.shape[1]):
      mask, true = foreground(samples[i, view]), opacity[i, view + 1, ..., 0] > 0.5
      both = mask & true
      # A sample without overlap gets the largest possible colour error.
      error = np.abs(samples[i, view] - white[i, view + 1])[both].mean() if both.any() else 1.0
      records.append(dict(iou=both.sum() / max((mask | true).sum(), 1), colour_error=error,
                          elevation_error_deg=np.degrees(abs(estimates[i] - angles[i, 0, 1])), number=i,
                          # Element 2 of a pose is the cosine of the azimuth from the photo to the view.
                          other_side=float(pose[i, view, 2]) < 0.0))
  # Singles with a front are a group of their own, so "single" holds plain solids only.
  groups = {"all": lambda r: True, "seen": lambda r: r["number"] % 2 == 0, "never_seen": lambda r: r["number"] % 2 == 1,
            "single": lambda r: len(specs[r["number"]].parts) == 1 and specs[r["number"]].parts[0][1] in solids.PLAIN,
            "stacked": lambda r: len(specs[r["number"]].parts) == 2,
            "with_a_front": lambda r: specs[r["number"]].parts[0][1] not in solids.PLAIN,
            "other_side": lambda r: r["other_side"]}
  table: dict[str, Any] = {}
  for group, belongs in groups.items():
    chosen = [r for r in records if belongs(r)]
    # Few scenes can leave a group empty; the table then lacks the group.
    if chosen:
      table |= {f"{name}_{group}": float(np.mean([r[name] for r in chosen]))
                for name in ("iou", "colour_error", "elevation_error_deg")}
  return table, np.concatenate([white[:, 0], white[:, 1], samples[:, 0]], axis=2)


def main() -> None:
  """Runs the command line.

  Scores a view prior and writes scores.json and samples.png.
  """
  parser = argparse.ArgumentParser(description="Score a view prior against traced scenes.")
  parser.add_argument("--prior", default="shapeworld-views", help="name or folder of a prior")
  parser.add_argument("--num", type=flag_types.positive, default=100, help="number of scenes, of three views each")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of scenes and noise")
  parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale in diffusers' convention")
  parser.add_argument("--steps", type=flag_types.positive, default=30, help="DDIM steps")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("view_scores"), help="folder to write")
  args = parser.parse_args()
  compilation.prepare()
  try:
    prior, params = prior_lib.build(args.prior)
  except CheckpointError as error:
    parser.error(str(error))
  if prior.photo is None:
    parser.error(f"--prior={args.prior} has a prompt as its condition; give a prior with a photo as its condition, "
                 "such as shapeworld-views")
  if prior.image_size != SIZE:
    parser.error(f"--prior={args.prior} makes images of {prior.image_size} pixels a side; give a prior of {SIZE} "
                 "pixels, the size of the traced views")
  table, images = score(prior, params, args.num, args.seed, args.guidance_scale, args.steps)
  args.out.mkdir(parents=True, exist_ok=True)
  write_json(args.out / "scores.json", table)
  write_sheet(args.out / "samples.png", images, columns=6)
  print(json.dumps(table, indent=2))
  print(f"wrote samples (photo, true view, sample) and scores to {args.out}")


if __name__ == "__main__":
  main()
