r"""Training images of the view prior: random scenes of ShapeWorld, each seen from several sides in one light.

    python -m sds_jax.shapeworld.view_dataset --num=10000 --seed=0 --out=views.npz

The light stays where it is while the camera goes round, so that what is seen from two sides agrees. A scene depends on
(seed, index) only; its first `PICTURES` views are such as people take pictures from, the others any that the trainer
of objects draws.
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

from sds_jax.shapeworld import captions, dataset, flag_types, scenes, solids, tracer
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array
from sds_jax.views import cameras, lights, poses

VIEWS, PICTURES = 4, 2
"""Views of a scene, and how many of them may serve as the picture that the prior is given."""
PICTURE_ELEVATION = tuple(np.radians((-10.0, 50.0)).tolist())
"""From where pictures are taken, radians; evenly in angle."""
SIZE = (0.8, 1.0)
"""Range of the factor that a scene is scaled by."""
SHIFT = 0.04
"""How far from the origin a scene stands at most, along each axis, world units."""
AMBIENT = (0.4, 0.8)
"""Range of the ambient light of a shaded scene."""
WEIGHTS = dataset.WEIGHTS | {"mug": 1.5, "snowman": 1.5}
"""How much more often than others the kinds are shown."""
BATCH = 16
"""Scenes a call of the compiled renderer makes; fixed, so that a scene does not depend on its neighbours."""


def sample_views(key: Array) -> tuple[Array, Array]:
  """Azimuths and elevations [VIEWS] of a scene's views, radians. Consumes `key`."""
  key_azimuth, key_picture, key_view = jax.random.split(key, 3)
  azimuth = jax.random.uniform(key_azimuth, (VIEWS,), maxval=2 * jnp.pi)
  low, high = PICTURE_ELEVATION
  pictures = jax.random.uniform(key_picture, (PICTURES,), minval=low, maxval=high)
  views = jax.vmap(cameras.sample_camera)(jax.random.split(key_view, VIEWS - PICTURES))[2]
  return azimuth, jnp.concatenate([pictures, views])


def sample_light(key: Array) -> tuple[Array, Array]:
  """A light's position [3] and the ambient intensity [] (1: no shading; diffuse is the rest). Consumes `key`."""
  key_camera, key_light, key_mode, key_ambient = jax.random.split(key, 4)
  position = lights.sample_light(key_light, cameras.sample_camera(key_camera)[0].position)
  ambient = jax.random.uniform(key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1])
  return position, jnp.where(jax.random.bernoulli(key_mode, dataset.ALBEDO_ONLY), jnp.ones_like(ambient), ambient)


def sample_place(key: Array) -> tuple[Array, Array]:
  """The factor [] that a scene is scaled by and where [3] it stands, world units. Consumes `key`."""
  key_size, key_shift = jax.random.split(key)
  size = jax.random.uniform(key_size, minval=SIZE[0], maxval=SIZE[1])
  return size, jax.random.uniform(key_shift, (3,), minval=-SHIFT, maxval=SHIFT)


def placed(scene: SolidScene, size: Array | float, shift: Array) -> SolidScene:
  """A scene made `size` times as large and then moved by `shift` [3], world units."""
  return scene.replace(offset=size * scene.offset + shift[None], scale=size * scene.scale)


def place(key: Array, scene: SolidScene) -> SolidScene:
  """A scene a little smaller, and not quite in the middle. Consumes `key`."""
  return placed(scene, *sample_place(key))


@jax.jit
def render_batch(seed: Array, indices: Array, batch: SolidScene) -> tuple[Array, Array]:
  """Images [B, VIEWS, H, W, 4] uint8, colours times opacity and opacity; azimuths and elevations [B, VIEWS, 2]."""
  def one(inputs: tuple[Array, SolidScene]) -> tuple[Array, Array]:
    index, scene = inputs
    key_views, key_light, key_place = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), 3)
    azimuth, elevation = sample_views(key_views)
    light, ambient = sample_light(key_light)
    scene = place(key_place, scene)

    def see(angles: tuple[Array, Array]) -> Array:
      camera = cameras.orbit(*angles, poses.DISTANCE, poses.FOV_Y)
      rgb, opacity = tracer.render(scene, camera, light, ambient, 1.0 - ambient, jnp.zeros(3), dataset.IMAGE_SIZE)
      return jnp.round(jnp.concatenate([rgb, opacity[..., None]], -1) * 255.0).astype(jnp.uint8)

    return jax.lax.map(see, (azimuth, elevation)), jnp.stack([azimuth, elevation], -1)

  return jax.lax.map(one, (indices, batch))


def kind_weights(front_weight: float = 1.0, chair_weight: float = 1.0) -> dict[str, float]:
  """How often each kind is shown; things with a front `front_weight` times as often as else, and chairs, which are the
  hardest to tell from one picture, `chair_weight` times as often as that."""
  factor = {kind: 1.0 if kind in solids.PLAIN else front_weight for kind in solids.KINDS}
  factor["chair"] *= chair_weight
  return {kind: WEIGHTS.get(kind, 1.0) * factor[kind] for kind in solids.KINDS}


def make_examples(seed: int, indices: Sequence[int], front_weight: float = 1.0,
                  chair_weight: float = 1.0) -> dict[str, np.ndarray]:
  """Scenes number `indices` (n of them) of the data set `seed`.

  Args:
    front_weight, chair_weight: of `kind_weights`.

  Returns:
    images [n, VIEWS, 64, 64, 4] uint8 (colours on black, and opacity), angles [n, VIEWS, 2] float32 (azimuth and
    elevation, radians), captions [n] strings.
  """
  parts = []
  weights = kind_weights(front_weight, chair_weight)
  for start in range(0, len(indices), BATCH):
    some = list(indices[start:start + BATCH])
    specs = [captions.sample_spec(np.random.default_rng([seed, index]), dataset.TWO_PARTS, weights=weights)
             for index in some]
    padding = BATCH - len(some)
    batch = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec in specs + specs[-1:] * padding])
    padded = np.array(some + some[-1:] * padding, np.uint32)
    images, angles = jax.device_get(render_batch(np.uint32(seed), padded, batch))
    parts.append(dict(images=images[:len(some)], angles=angles[:len(some)],
                      captions=np.array([captions.caption(spec) for spec in specs])))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_dataset(num: int, seed: int, path: str | os.PathLike, front_weight: float = 1.0,
                 chair_weight: float = 1.0) -> pathlib.Path:
  """Renders scenes 0 .. num - 1 of data set `seed` into an .npz file; see `dataset.make_dataset`."""
  return dataset.make_dataset(num, seed, path, make=functools.partial(
    make_examples, front_weight=front_weight, chair_weight=chair_weight))


def main() -> None:
  """Command line: renders a data set."""
  parser = argparse.ArgumentParser(description="Render training images of ShapeWorld from several sides.")
  parser.add_argument("--num", type=flag_types.positive, default=10_000, help="number of scenes")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of the data set")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("views.npz"), help="file to write")
  args = parser.parse_args()
  print(f"the images lie in {make_dataset(args.num, args.seed, args.out)}")


if __name__ == "__main__":
  main()
