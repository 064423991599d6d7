r"""Training images of the view prior: random scenes of ShapeWorld, with several views of each.

    python -m sds_jax.shapeworld.view_dataset --num=10000 --seed=0 --out=views.npz

All views of a scene share a light, so that views of the same surface agree. A scene depends on (seed, index) only. Its
first `PHOTOS` views have the elevations of typical photos; the other views come from the camera distribution of a
text-to-3D run.
"""
from __future__ import annotations

import argparse
import functools
import os
import pathlib
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import terminal
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, dataset, flag_types, scenes, solids, tracer
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array
from sds_jax.views import cameras, lights, poses

VIEWS, PHOTOS = 4, 2
"""Views of a scene, and the number of views eligible as the photo, the condition of the prior."""
PHOTO_ELEVATION = tuple(np.radians((-10.0, 50.0)).tolist())
"""Range of the elevation of photos, radians, uniform in angle."""
SIZE = (0.8, 1.0)
"""Range of the scale factor of a scene."""
SHIFT = 0.04
"""Largest shift of a scene from the origin along each axis, world units."""
AMBIENT = (0.4, 0.8)
"""Range of the ambient light of a shaded scene."""
KIND_WEIGHTS = dataset.KIND_WEIGHTS | {"mug": 1.5, "snowman": 1.5}
"""Kind -> frequency relative to the other kinds."""
# Fixed, as in `dataset`: images must not depend on the number of scenes in a call.
BATCH = 16
"""Scenes per call of the compiled renderer."""


def sample_views(key: Array) -> tuple[Array, Array]:
  """Draws azimuths and elevations [VIEWS], radians; consumes `key`."""
  key_azimuth, key_photo, key_view = jax.random.split(key, 3)
  azimuth = jax.random.uniform(key_azimuth, (VIEWS,), maxval=2 * jnp.pi)
  low, high = PHOTO_ELEVATION
  photos = jax.random.uniform(key_photo, (PHOTOS,), minval=low, maxval=high)
  # Only the elevations of these cameras are used; the azimuths above are uniform for all views.
  views = jax.vmap(cameras.sample_camera)(jax.random.split(key_view, VIEWS - PHOTOS))[2]
  return azimuth, jnp.concatenate([photos, views])


def sample_light(key: Array) -> tuple[Array, Array]:
  """Draws a light position [3] and an ambient intensity [].

  Consumes `key`.

  Diffuse is 1 - ambient, so ambient = 1 means no shading.
  """
  key_camera, key_light, key_mode, key_ambient = jax.random.split(key, 4)
  # `sample_light` places the light around a camera. A random camera, unrelated to the views, keeps the light fixed.
  position = lights.sample_light(key_light, cameras.sample_camera(key_camera)[0].position)
  ambient = jax.random.uniform(key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1])
  return position, jnp.where(jax.random.bernoulli(key_mode, dataset.ALBEDO_ONLY_SHARE), jnp.ones_like(ambient), ambient)


def sample_placement(key: Array) -> tuple[Array, Array]:
  """Draws a scale [] and a shift [3]; consumes `key`."""
  key_size, key_shift = jax.random.split(key)
  size = jax.random.uniform(key_size, minval=SIZE[0], maxval=SIZE[1])
  return size, jax.random.uniform(key_shift, (3,), minval=-SHIFT, maxval=SHIFT)


def scale_and_shift(scene: SolidScene, size: Array | float, shift: Array) -> SolidScene:
  """Scales a scene by `size`, then shifts by `shift` [3]."""
  # Offsets are scaled as well, so that a stack stays in contact.
  return scene.replace(offset=size * scene.offset + shift[None], scale=size * scene.scale)


def place_at_random(key: Array, scene: SolidScene) -> SolidScene:
  """Scales and shifts a scene slightly at random; consumes `key`."""
  return scale_and_shift(scene, *sample_placement(key))


@jax.jit
def render_batch(seed: Array, indices: Array, batch: SolidScene) -> tuple[Array, Array]:
  """Renders the views of B scenes.

  Args:
    seed: [] uint32, of the data set.
    indices: [B] uint32, of the scenes in the data set.
    batch: leaves [B, ...].

  Returns:
    images [B, VIEWS, H, W, 4] uint8 (colours times opacity, and opacity), angles [B, VIEWS, 2] (azimuth and elevation,
    radians).
  """
  def render_scene(inputs: tuple[Array, SolidScene]) -> tuple[Array, Array]:
    index, scene = inputs
    key_views, key_light, key_place = jax.random.split(jax.random.fold_in(seeded_key(seed), index), 3)
    azimuth, elevation = sample_views(key_views)
    light, ambient = sample_light(key_light)
    scene = place_at_random(key_place, scene)

    def render_view(angles: tuple[Array, Array]) -> Array:
      camera = cameras.orbit(*angles, poses.DISTANCE, poses.FOV_Y)
      # On black the colour is premultiplied by the opacity, so any background can be added later.
      rgb, opacity = tracer.render(scene, camera, light, ambient, 1.0 - ambient, jnp.zeros(3), dataset.IMAGE_SIZE)
      return jnp.round(jnp.concatenate([rgb, opacity[..., None]], -1) * 255.0).astype(jnp.uint8)

    return jax.lax.map(render_view, (azimuth, elevation)), jnp.stack([azimuth, elevation], -1)

  return jax.lax.map(render_scene, (indices, batch))


def kind_weights(front_weight: float = 1.0, chair_weight: float = 1.0) -> dict[str, float]:
  """Returns the frequency of each kind.

  Args:
    front_weight: factor for kinds with a front.
    chair_weight: further factor for chairs, the kind hardest to recognise in a photo.
  """
  factor = {kind: 1.0 if kind in solids.PLAIN else front_weight for kind in solids.KINDS}
  # Both factors apply to chairs, a kind with a front.
  factor["chair"] *= chair_weight
  return {kind: KIND_WEIGHTS.get(kind, 1.0) * factor[kind] for kind in solids.KINDS}


def make_examples(seed: int, indices: Sequence[int], front_weight: float = 1.0,
                  chair_weight: float = 1.0) -> dict[str, np.ndarray]:
  """Renders n scenes of the data set `seed`.

  Args:
    seed: of the data set, 0 .. 2^32 - 1.
    indices: n indices of scenes.
    front_weight, chair_weight: arguments of `kind_weights`.

  Returns:
    images [n, VIEWS, 64, 64, 4] uint8 (colours on black, and opacity), angles [n, VIEWS, 2] float32 (azimuth and
    elevation, radians), captions [n] strings.
  """
  # `sample_spec` draws the captions by numpy and `render_batch` all else by JAX, from the same seed and index.
  parts = []
  weights = kind_weights(front_weight, chair_weight)
  for start in range(0, len(indices), BATCH):
    chunk = list(indices[start:start + BATCH])
    specs = [captions.sample_spec(np.random.default_rng([seed, index]), dataset.STACKED_SHARE, weights=weights)
             for index in chunk]
    # A short last batch repeats its last scene, so that the renderer compiles once.
    padding = BATCH - len(chunk)
    batch = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec in specs + specs[-1:] * padding])
    padded = np.array(chunk + chunk[-1:] * padding, np.uint32)
    images, angles = jax.device_get(render_batch(np.uint32(seed), padded, batch))
    parts.append(dict(images=images[:len(chunk)], angles=angles[:len(chunk)],
                      captions=np.array([captions.caption(spec) for spec in specs])))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_dataset(num: int, seed: int, path: str | os.PathLike, front_weight: float = 1.0,
                 chair_weight: float = 1.0) -> pathlib.Path:
  """Renders `num` scenes into an .npz file; returns its path.

  Scenes 0 .. num - 1.

  A killed run continues after its last chunk, see `dataset.make_dataset`. For `front_weight` and `chair_weight` see
  `kind_weights`.
  """
  return dataset.make_dataset(num, seed, path, make=functools.partial(
    make_examples, front_weight=front_weight, chair_weight=chair_weight))


def main() -> None:
  """Runs the command line: renders a data set."""
  parser = argparse.ArgumentParser(description="Render training images of ShapeWorld from several sides.")
  parser.add_argument("--num", type=flag_types.positive, default=10_000, help="number of scenes")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of the data set")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("views.npz"), help="file to write")
  args = parser.parse_args()
  print(f"wrote the images to {make_dataset(args.num, args.seed, args.out)}")


if __name__ == "__main__":
  main()
