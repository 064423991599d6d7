r"""Scores of a text prior: samples of captions from known cameras against the traced scenes.

    python -m sds_jax.shapeworld.score_prior --prior=shapeworld --num=200 --out=scores

A colour is right if the mean colour of the sample, over the true pixels of the part, is nearest to the colour of the
part among all eight colours. Colours are compared by direction, so shading does not matter. A shape is right if the
silhouette of the sample overlaps the true silhouette with an IoU of at least 0.7, and no caption with a single other
shape overlaps better by more than 0.02.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import compilation, terminal
from sds_jax.priors import prior as prior_lib, sample
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.files import CheckpointError, write_json
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, flag_types, scenes, solids, tracer
from sds_jax.types import Camera, Params
from sds_jax.views import cameras

ELEVATION = (math.radians(0.0), math.radians(50.0))
"""Range of the elevation of the cameras: from above, a cone, a cylinder and a sphere are the same disc."""
FOREGROUND = 0.06
"""Smallest difference between an object pixel and the background, in the channel with the largest difference."""


def draw_cameras(key: jax.Array, num: int) -> Camera:
  """Draws `num` cameras with elevations in ELEVATION; consumes `key`."""
  distribution = dataclasses.replace(cameras.CameraDistribution(), elevation=ELEVATION)
  return jax.vmap(lambda k: cameras.sample_camera(k, distribution)[0])(jax.random.split(key, num))


def sample_views(prior: prior_lib.Prior, params: Params, specs: list[captions.Spec], views: Camera, key: jax.Array,
                 guidance_scale: float, steps: int, batch: int = 16) -> np.ndarray:
  """Samples an image [n, 64, 64, 3] for each caption.

  Args:
    prior, params: a text prior with a camera condition.
    specs: n captions.
    views: n cameras, leaves [n, ...].
    key: consumed; each batch folds in its first index.
    guidance_scale: in the convention of diffusers.
    steps: DDIM steps.
    batch: samples per call.
  """
  draw = jax.jit(lambda p, c, u, k: ddim(prior, p, c, u, k, steps, guidance_scale),
                 compiler_options=compilation.unet_options())
  features = cameras.camera_features(views)
  null = prior.embed([""])
  images = []
  for start in range(0, len(specs), batch):
    # The last batch repeats the last caption, so that the sampler compiles once.
    index = [min(i, len(specs) - 1) for i in range(start, start + batch)]
    text = prior.embed([captions.caption(specs[i]) for i in index])
    empty = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), null, text)
    camera = features[np.array(index)]
    # The unconditional side keeps the camera: guidance sharpens the text alone.
    out = draw(params, {**text, "camera": camera}, {**empty, "camera": camera}, jax.random.fold_in(key, start))
    images.append(np.asarray(out)[:len(specs) - start])
  return np.concatenate(images)


def alternatives(spec: captions.Spec) -> list[captions.Spec]:
  """Lists the specs with another shape in a single part."""
  kinds = solids.KINDS if len(spec.parts) == 1 else solids.PLAIN
  out = []
  for i, (colour, kind) in enumerate(spec.parts):
    for other in kinds:
      if other != kind:
        out.append(dataclasses.replace(spec, parts=spec.parts[:i] + ((colour, other),) + spec.parts[i + 1:]))
  return out


@jax.jit
def _masks(batch: scenes.SolidScene, camera: Camera) -> jax.Array:
  return jax.lax.map(lambda scene: tracer.silhouette(scene, camera, 64, 1) > 0.5, batch)


@jax.jit
def _albedo(scene: scenes.SolidScene, camera: Camera) -> tuple[jax.Array, jax.Array]:
  return tracer.render(scene, camera, camera.position, 1.0, 0.0, jnp.zeros(3), 64, 1)


def foreground(image: np.ndarray) -> np.ndarray:
  """Returns the object mask [H, W] of an image [H, W, 3].

  The median colour of the border is the background. A pixel belongs to the object if its difference from the background
  exceeds FOREGROUND and half of the largest difference within two pixels. On traced images the mean IoU with the true
  silhouette is 0.97, and 0.94 with a fixed threshold of 0.1.
  """
  border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
  difference = np.abs(image - np.median(border, axis=0)).max(-1)
  # A pixel half covered by the object has half of the local maximum. A fixed threshold enlarges objects of high
  # contrast.
  around = np.lib.stride_tricks.sliding_window_view(np.pad(difference, 2), (5, 5)).max((-2, -1))
  return (difference > FOREGROUND) & (difference > around / 2)


def colour_name(rgb: np.ndarray) -> str:
  """Returns the colour name nearest to `rgb` [3] in direction."""
  # `rgb` itself needs no normalisation: its length scales all eight cosines alike.
  palette = np.array(list(solids.COLOURS.values()))
  palette = palette / np.linalg.norm(palette, axis=-1, keepdims=True)
  return list(solids.COLOURS)[int(np.argmax(palette @ rgb))]


def score_sample(image: np.ndarray, spec: captions.Spec, camera: Camera) -> dict[str, Any]:
  """Scores a sample [64, 64, 3] against the scene of its caption.

  Returns:
    colour: whether all colours are right; shape: whether all shapes are right; iou: of the silhouettes.
  """
  # Ambient 1 without diffuse light gives the albedo, so the parts can be told apart by colour.
  albedo, coverage = jax.device_get(_albedo(scenes.scene_from_spec(spec), camera))
  mask = foreground(image)
  colours = []
  for name, _ in spec.parts:
    # Albedo within 0.05 of a named colour selects the body of the part, without painted accents.
    part = (coverage > 0.5) & (np.abs(albedo - np.asarray(solids.COLOURS[name])).max(-1) < 0.05) & mask
    colours.append(part.any() and colour_name(image[part].mean(0)) == name)
  others = [spec, *alternatives(spec)]
  # A single solid has 10 alternatives and a stack 12; equal lengths compile `_masks` once.
  others += [spec] * (13 - len(others))
  truths = np.asarray(_masks(scenes.stack_scenes([scenes.scene_from_spec(s) for s in others]), camera))
  ious = (truths & mask).sum((1, 2)) / np.maximum((truths | mask).sum((1, 2)), 1)
  return dict(colour=bool(all(colours)), shape=bool(ious[0] >= 0.7 and ious[0] >= ious.max() - 0.02),
              iou=float(ious[0]))


def score(prior: prior_lib.Prior, params: Params, num: int = 200, seed: int = 0, guidance_scale: float = 2.0,
          steps: int = 30) -> tuple[dict[str, float], np.ndarray]:
  """Scores a prior over `num` captions.

  Half of the captions have a colour-kind pair absent from training.

  Args:
    prior, params: a text prior with a camera condition.
    num: number of captions.
    seed: of captions, cameras and noise.
    guidance_scale: in the convention of diffusers.
    steps: DDIM steps.

  Returns:
    table of means ("colour_all", "shape_stacked", "iou_never_seen", ...), samples [num, 64, 64, 3].
  """
  specs = [captions.sample_spec(np.random.default_rng([seed, i]), 0.5, held_out=i % 2 == 1) for i in range(num)]
  k_camera, k_noise = jax.random.split(seeded_key(seed))
  views = draw_cameras(k_camera, num)
  images = sample_views(prior, params, specs, views, k_noise, guidance_scale, steps)
  results = [score_sample(image, spec, jax.tree.map(lambda leaf: leaf[i], views))
             for i, (image, spec) in enumerate(zip(images, specs))]

  def mean(name: str, belongs: Any) -> float:
    return float(np.mean([r[name] for i, r in enumerate(results) if belongs(i)]))

  # Odd indices are the held-out specs, see above.
  groups = dict(all=lambda i: True, seen=lambda i: i % 2 == 0, never_seen=lambda i: i % 2 == 1,
                single=lambda i: len(specs[i].parts) == 1, stacked=lambda i: len(specs[i].parts) == 2)
  # Few captions can leave a group empty; the table then lacks the group.
  table = {f"{name}_{group}": mean(name, belongs)
           for group, belongs in groups.items() if any(map(belongs, range(num))) for name in ("colour", "shape", "iou")}
  return table, images


def write_sheet(path: pathlib.Path, images: np.ndarray, columns: int = 16) -> None:
  """Writes images as a PNG sheet.

  The sheet has whole rows of `columns`; fewer images make a single shorter row.
  """
  columns = min(columns, len(images))
  images = images[:len(images) // columns * columns]
  sample.write_row(path, np.stack([np.concatenate(images[i::columns]) for i in range(columns)]))


def main() -> None:
  """Runs the command line.

  Scores a prior and writes scores.json and samples.png.
  """
  parser = argparse.ArgumentParser(description="Score a ShapeWorld prior against traced scenes.")
  parser.add_argument("--prior", default="shapeworld", help="name or folder of a prior")
  parser.add_argument("--num", type=flag_types.positive, default=200, help="number of captions")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of captions, cameras and noise")
  parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale in diffusers' convention")
  parser.add_argument("--steps", type=flag_types.positive, default=30, help="DDIM steps")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("prior_scores"), help="folder to write")
  args = parser.parse_args()
  compilation.prepare()
  try:
    prior, params = prior_lib.build(args.prior)
  except CheckpointError as error:
    parser.error(str(error))
  table, images = score(prior, params, args.num, args.seed, args.guidance_scale, args.steps)
  args.out.mkdir(parents=True, exist_ok=True)
  write_json(args.out / "scores.json", table)
  write_sheet(args.out / "samples.png", images)
  print(json.dumps(table, indent=2))
  print(f"wrote samples and scores to {args.out}")


if __name__ == "__main__":
  main()
