r"""Training images of the multi-view prior: random scenes of ShapeWorld, four views of each, with captions.

    python -m sds_jax.shapeworld.multiview_dataset --num=3000 --seed=0 --out=groups.npz

Cameras, lights and their draws once a group are those of a text-to-3D run with a multi-view prior
(`cameras.sample_groups`). A scene depends on (seed, index) only.
"""
from __future__ import annotations

import argparse
import os
import pathlib
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import terminal
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, dataset, flag_types, scenes, tracer
from sds_jax.shapeworld.multiview_recipe import VIEWS
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array
from sds_jax.views import cameras, lights, prompts

KIND_WEIGHTS = dataset.KIND_WEIGHTS | {"mug": 1.5, "snowman": 1.5}
"""Kind -> frequency relative to the other kinds; the kinds with a front matter most to a prior of several views."""
BATCH = 16
"""Scenes per call of the compiled renderer; fixed, as in `dataset`."""


@jax.jit
def _render_batch(seed: Array, indices: Array, batch: SolidScene) -> tuple[Array, Array, Array]:
  """Renders the views of B scenes.

  Args:
    seed: [] uint32, of the data set.
    indices: [B] uint32, of the scenes in the data set.
    batch: leaves [B, ...].

  Returns:
    images [B, VIEWS, H, W, 4] uint8 (colours times opacity, and opacity), camera features [B, VIEWS, CAMERA_DIM], view
    indices [B, VIEWS].
  """
  def render_scene(inputs: tuple[Array, SolidScene]) -> tuple[Array, Array, Array]:
    index, scene = inputs
    key_camera, key_light, key_mode, key_ambient = jax.random.split(jax.random.fold_in(seeded_key(seed), index), 4)
    views, azimuth, elevation = cameras.sample_groups(key_camera, jnp.arange(VIEWS), VIEWS, VIEWS)
    # One key for all views: each is lit from the same side of its own camera.
    light = jax.vmap(lambda position: lights.sample_light(key_light, position))(views.position)
    ambient = jax.random.uniform(key_ambient, minval=dataset.AMBIENT[0], maxval=dataset.AMBIENT[1])
    unshaded = jax.random.bernoulli(key_mode, dataset.ALBEDO_ONLY_SHARE)
    ambient = jnp.where(unshaded, jnp.ones_like(ambient), ambient)

    def render_view(view: tuple) -> Array:
      camera, position = view
      # On black the colour is premultiplied by the opacity, so any background can be added later.
      rgb, opacity = tracer.render(scene, camera, position, ambient, 1.0 - ambient, jnp.zeros(3), dataset.IMAGE_SIZE)
      return jnp.round(jnp.concatenate([rgb, opacity[..., None]], -1) * 255.0).astype(jnp.uint8)

    return (jax.lax.map(render_view, (views, light)), cameras.camera_features(views),
            prompts.view_index(azimuth, elevation))

  return jax.lax.map(render_scene, (indices, batch))


def _sample_text(seed: int, index: int) -> tuple[captions.Spec, bool]:
  """Draws the spec of a scene, and whether its captions have view words."""
  rng = np.random.default_rng([seed, index])
  spec = captions.sample_spec(rng, dataset.STACKED_SHARE, weights=KIND_WEIGHTS)
  return spec, bool(rng.random() < dataset.VIEW_WORDS_SHARE)


def make_examples(seed: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
  """Renders n scenes of the data set `seed`.

  Args:
    seed: of the data set, 0 .. 2^32 - 1.
    indices: n indices of scenes.

  Returns:
    images [n, VIEWS, 64, 64, 4] uint8 (colours on black, and opacity), cameras [n, VIEWS, CAMERA_DIM] float32
    (`cameras.camera_features`), captions [n, VIEWS] strings, with view words in all views of a scene or in none.
  """
  parts = []
  for start in range(0, len(indices), BATCH):
    chunk = list(indices[start:start + BATCH])
    texts = [_sample_text(seed, index) for index in chunk]
    # A short last batch repeats its last scene, so that the renderer compiles once.
    padding = BATCH - len(chunk)
    batch = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec, _ in texts + texts[-1:] * padding])
    padded = np.array(chunk + chunk[-1:] * padding, np.uint32)
    images, features, views = jax.device_get(_render_batch(np.uint32(seed), padded, batch))
    written = [[captions.caption(spec, captions.VIEWS[view] if has_view_words else None) for view in row]
               for (spec, has_view_words), row in zip(texts, views)]
    parts.append(dict(images=images[:len(chunk)], cameras=features[:len(chunk)], captions=np.array(written)))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_dataset(num: int, seed: int, path: str | os.PathLike) -> pathlib.Path:
  """Renders scenes 0 .. num - 1 into an .npz file; returns its path.

  A killed run continues after its last chunk, see `dataset.make_dataset`.
  """
  return dataset.make_dataset(num, seed, path, chunk=250, make=make_examples)


def main() -> None:
  """Runs the command line: renders a data set."""
  parser = argparse.ArgumentParser(description="Render four views of random scenes of ShapeWorld.")
  parser.add_argument("--num", type=flag_types.positive, default=3_000, help="number of scenes")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of the data set")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("groups.npz"), help="file to write")
  args = parser.parse_args()
  print(f"wrote the images to {make_dataset(args.num, args.seed, args.out)}")


if __name__ == "__main__":
  main()
