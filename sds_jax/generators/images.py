"""A parameterised image as a generator.

P particles of F frames are rendered R times with other random parts.

A batch has B = R P F images in the order repeat, particle, frame. Particles are independent images; their parameters
have a leading axis [P].
"""
from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.generators.parameterization import Parameterization
from sds_jax.generators.protocol import Draws, Exported, Views
from sds_jax.io import images as images_lib, run_files
from sds_jax.prng import as_threefry, example_keys, seeded_key
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras

ENLARGEMENT = 4
"""Side of `image_large.png` over the side of `image.png`, for images that can be drawn at any resolution."""

_STEMS = ("image", "images", "image_large", "rgba", "texture", "views")
"""Stems of the files that generators write, which a number may follow."""

_DISTANCE, _FOV_DEG = 2.7, 46.0
"""The camera of a viewpoint: world units and degrees, in the middle of the shipped prior's cameras."""


@dataclasses.dataclass(frozen=True)
class ImageGenerator:
  """Particles of one parameterization; no arrays.

  Attributes:
    parameterization: of one particle.
    particles: P, number of independent images.
    viewpoint: (azimuth, elevation) in degrees of every image, for priors that know cameras; None: no camera.
  """
  parameterization: Parameterization
  particles: int = 1
  viewpoint: tuple[float, float] | None = None

  @property
  def together(self) -> int:
    """Number of neighbouring images that belong to different particles or frames."""
    return self.particles * self.parameterization.frames

  def init(self, key: Array) -> tuple[Params, None]:
    """Returns (params with leaves [P, ...], no buffers); consumes `key`."""
    # threefry: under vmap other implementations draw the whole batch from the first key.
    return jax.vmap(self.parameterization.init)(jax.random.split(as_threefry(key), self.particles)), None

  def render(self, params: Params, buffers: Any, draws: Draws) -> Views:
    """Renders B images.

    Particle p in repeat r has the key fold_in(keys["views"], r P + p).

    `draws.index` must hold all images of some repeats.
    """
    del buffers
    frames, count = self.parameterization.frames, draws.index.shape[0]
    repeats = count // self.together
    # One key for all frames of a particle, because `apply` draws all frames together.
    keys = example_keys(draws.keys["views"], draws.index[::frames] // frames)
    keys = keys.reshape(repeats, self.particles)
    # The outer map is over repeats, which share the parameters.
    images = jax.vmap(lambda row: jax.vmap(self.parameterization.apply)(params, row))(keys)  # [R, P, F, H, H, 3]
    images = images.reshape(count, *images.shape[3:])
    metrics = dict(image_mean=jnp.mean(images), image_std=jnp.mean(jnp.std(images, axis=(1, 2, 3))))
    frame = jnp.tile(jnp.arange(frames, dtype=jnp.int32), repeats * self.particles)
    return Views(images, metrics, self._cameras(keys), frame=frame)

  def _cameras(self, keys: Array) -> Camera | None:
    """Returns the cameras [B] of a batch; `keys` is [R, P].

    The cameras are those of the parameterization, else the viewpoint's.
    """
    count, draw_cameras = keys.size * self.parameterization.frames, self.parameterization.cameras
    if draw_cameras is not None:
      # With the keys of `apply`, so that cameras and images belong together.
      cams = jax.vmap(jax.vmap(draw_cameras))(keys)
      return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[3:]), cams)
    if self.viewpoint is None:
      return None
    azimuth, elevation = (math.radians(angle) for angle in self.viewpoint)
    camera = cameras.orbit(azimuth, elevation, _DISTANCE, math.radians(_FOV_DEG))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), camera)

  def update_buffers(self, params: Params, buffers: Any, step: Array, progress: Array, key: Array) -> Any:
    """Returns `buffers`: images have none."""
    del params, step, progress, key
    return buffers

  # Kept, so that previews and the final images share one compiled program.
  @functools.cached_property
  def show(self) -> Callable[[Params], Array]:
    """A compiled function (params) -> images [P F, H, H, 3].

    The images come particle by particle, with nothing random.
    """
    show = self.parameterization.show or (lambda params: self.parameterization.apply(params, seeded_key(0)))

    @jax.jit
    def images(params: Params) -> Array:
      shown = jax.vmap(show)(params)
      return shown.reshape(-1, *shown.shape[2:])

    return images

  def export(self, params: Params, buffers: Any, folder: Path) -> Exported:
    """Writes all images, each whole or not at all.

    The images of an earlier state are deleted.
    """
    del buffers
    generator, written = self.parameterization, {}
    shown = jax.device_get(self.show(params))
    written["the image" if len(shown) == 1 else "the images"] = _write(folder, "image", shown)
    if len(shown) > 1:
      written["all in one"] = [images_lib.write_png(images_lib.tile(shown), folder / "images.png")]
    if generator.at is not None:
      size = ENLARGEMENT * shown.shape[1]
      large = jax.jit(lambda params: jax.vmap(lambda one: generator.at(one, size))(params))(params)
      written[f"drawn at {size}x{size}"] = _write(
          folder, "image_large", jax.device_get(large).reshape(-1, size, size, 3))
    if generator.extras is not None:
      extras = jax.device_get(jax.jit(jax.vmap(generator.extras))(params))
      for name, values in extras.items():
        written[name] = _write(folder, name, values)
    _delete_stale(folder, {path for paths in written.values() for path in paths})
    return Exported(written)


def file_names(count: int) -> list[str]:
  """Returns the names of the files that a generator of `count` images may write."""
  return ["images.png", *(name for stem in _STEMS for name in _names(stem, count))]


def _names(stem: str, count: int) -> list[str]:
  return [f"{stem}.png"] if count == 1 else [f"{stem}_{i}.png" for i in range(count)]


def _delete_stale(folder: Path, kept: set[Path]) -> None:
  for stem in _STEMS:
    # A digit must follow: image_* would also match image_large.png.
    for old in {*folder.glob(f"{stem}.png"), *folder.glob(f"{stem}_[0-9]*.png")} - kept:
      run_files.delete(old)


def _write(folder: Path, name: str, batch: np.ndarray) -> list[Path]:
  """Writes name.png, or name_0.png and so on for several images."""
  return [images_lib.write_png(image, folder / file) for file, image in zip(_names(name, len(batch)), batch)]
