r"""Is the view prior right? Views that it draws of pictures, against the traced scenes.

    python -m sds_jax.shapeworld.score_view_prior --prior=shapeworld-views --num=200 --out=view_scores

Of each scene the first view of `view_dataset` is the picture and the others are asked for; scenes are never those of a
training set, and every other one has a pair of colour and shape that training never shows.
"""
from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import compilation
from sds_jax.priors import prior as prior_lib, sight
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.files import CheckpointError, write_json
from sds_jax.shapeworld import captions, flag_types, scenes, solids, view_dataset
from sds_jax.shapeworld.sample_photos import ROOT_SEED
from sds_jax.shapeworld.score_prior import foreground, write_sheet
from sds_jax.types import Array, Params
from sds_jax.views import poses

SIZE = 64
"""Of the traced views, pixels a side."""
SEED = np.uint32(ROOT_SEED + 1)
"""Of the scenes: no training set's, and not that of sample pictures."""


def draw(num: int, seed: int) -> tuple[list[captions.Spec], np.ndarray, np.ndarray]:
  """Captions of `num` scenes, their views [num, VIEWS, 64, 64, 4] uint8 and angles [num, VIEWS, 2]."""
  specs = [captions.sample_spec(np.random.default_rng([int(SEED), seed, i]), held_out=i % 2 == 1,
                                weights=view_dataset.WEIGHTS) for i in range(num)]
  stacked = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec in specs])
  numbers = np.arange(num, dtype=np.uint32) + np.uint32(seed * 100_000 % 2**32)
  images, angles = jax.device_get(view_dataset.render_batch(SEED, numbers, stacked))
  return specs, images, angles


def sample(prior: prior_lib.Prior, params: Params, pictures: np.ndarray, pose: Array, key: Array,
           guidance_scale: float, steps: int, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
  """Of pictures [n, 64, 64, 3] on white the views at poses [n, V, POSE_DIM]: [n, V, 64, 64, 3]; elevations [n]."""
  seen = [prior.sight.see(jnp.asarray(picture)) for picture in pictures]
  cond = [prior.sight.tell(params, one, where) for one, where in zip(seen, pose)]
  cond = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cond)
  run = jax.jit(lambda p, c, k: ddim(prior, p, c, sight.null(c), k, steps, guidance_scale),
                compiler_options=compilation.unet_options())
  count, images = pose.shape[0] * pose.shape[1], []
  for start in range(0, count, batch):
    some = np.minimum(np.arange(start, start + batch), count - 1)
    out = run(params, jax.tree.map(lambda leaf: leaf[some], cond), jax.random.fold_in(key, start))
    images.append(np.asarray(out)[:count - start])
  elevations = np.array([float(one["elevation"]) for one in seen])
  return np.concatenate(images).reshape(*pose.shape[:2], *images[0].shape[1:]), elevations


def score(prior: prior_lib.Prior, params: Params, num: int = 100, seed: int = 0, guidance_scale: float = 2.0,
          steps: int = 30) -> tuple[dict[str, float], np.ndarray]:
  """Means over `num` scenes of each group, and the samples beside the truth [n, 64, 128, 3].

  iou: of the sample's silhouette with the scene's; colour_error: mean absolute RGB difference where both are;
  elevation_error_deg: of the estimate from the picture.
  """
  specs, images, angles = draw(num, seed)
  colours, opacity = images[..., :3] / 255.0, images[..., 3:] / 255.0
  white = (colours + 1.0 - opacity).astype(np.float32)
  azimuth, elevation = jnp.moveaxis(jnp.asarray(angles), -1, 0)
  pose = poses.relative_pose(elevation[:, 1:], azimuth[:, 1:], elevation[:, :1], azimuth[:, :1])
  drawn, told = sample(prior, params, white[:, 0], pose, jax.random.key(seed), guidance_scale, steps)
  records = []
  for i, spec in enumerate(specs):
    for view in range(drawn.shape[1]):
      mask, true = foreground(drawn[i, view]), opacity[i, view + 1, ..., 0] > 0.5
      both = mask & true
      error = np.abs(drawn[i, view] - white[i, view + 1])[both].mean() if both.any() else 1.0
      records.append(dict(iou=both.sum() / max((mask | true).sum(), 1), colour_error=error,
                          elevation_error_deg=np.degrees(abs(told[i] - angles[i, 0, 1])), number=i,
                          other_side=float(pose[i, view, 2]) < 0.0))
  groups = {"all": lambda r: True, "seen": lambda r: r["number"] % 2 == 0, "never_seen": lambda r: r["number"] % 2 == 1,
            "single": lambda r: len(specs[r["number"]].parts) == 1 and specs[r["number"]].parts[0][1] in solids.PLAIN,
            "stacked": lambda r: len(specs[r["number"]].parts) == 2,
            "with_a_front": lambda r: specs[r["number"]].parts[0][1] not in solids.PLAIN,
            "other_side": lambda r: r["other_side"]}
  table: dict[str, Any] = {}
  for group, belongs in groups.items():
    chosen = [r for r in records if belongs(r)]
    if chosen:
      table |= {f"{name}_{group}": float(np.mean([r[name] for r in chosen]))
                for name in ("iou", "colour_error", "elevation_error_deg")}
  return table, np.concatenate([white[:, 0], white[:, 1], drawn[:, 0]], axis=2)


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description="Score a view prior against traced scenes.")
  parser.add_argument("--prior", default="shapeworld-views", help="a name or a folder")
  parser.add_argument("--num", type=flag_types.positive, default=100, help="scenes, of three views each")
  parser.add_argument("--seed", type=flag_types.seed, default=0)
  parser.add_argument("--guidance_scale", type=float, default=2.0, help="diffusers' convention")
  parser.add_argument("--steps", type=flag_types.positive, default=30, help="DDIM steps")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("view_scores"), help="folder")
  args = parser.parse_args()
  compilation.prepare()
  try:
    prior, params = prior_lib.build(args.prior)
  except CheckpointError as error:
    parser.error(str(error))
  if prior.sight is None:
    parser.error(f"--prior={args.prior} is told words; this scores priors that are told a picture")
  if prior.image_size != SIZE:
    parser.error(f"--prior={args.prior} makes images of {prior.image_size} pixels a side, and the traced views that "
                 f"they are held against have {SIZE}")
  table, images = score(prior, params, args.num, args.seed, args.guidance_scale, args.steps)
  args.out.mkdir(parents=True, exist_ok=True)
  write_json(args.out / "scores.json", table)
  write_sheet(args.out / "samples.png", images, columns=6)
  print(json.dumps(table, indent=2))
  print(f"samples (picture, truth, drawn) and scores lie in {args.out}")


if __name__ == "__main__":
  main()
