"""What a run of pictures leaves to look at, made from a state alone."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from sds_jax.io import images
from sds_jax.training.image2d import Studio
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params

LARGER = 4
"""How many times larger `image_large.png` is, for pictures without a resolution of their own."""

_NAMES = ("image", "images", "image_large", "rgba", "texture", "views")
"""Files that generators leave, by their stem, which a number may follow."""

PicturesFn = Callable[[Params], Array]
"""(params, leaves [P, ...]) -> [P F, H, H, 3], particle by particle."""


def make_pictures(studio: Studio) -> PicturesFn:
  """A compiled function of the parameters: the pictures, without what is random in a step where that can be."""
  generator = studio.generator
  show = generator.show or (lambda params: generator.apply(params, jax.random.key(0)))

  @jax.jit
  def pictures(params: Params) -> Array:
    shown = jax.vmap(show)(params)
    return shown.reshape(-1, *shown.shape[2:])

  return pictures


def write_outputs(studio: Studio, pictures: PicturesFn, state: TrainState, folder: Path) -> dict[str, list[Path]]:
  """Everything into `folder`; each file is written whole or not at all, those of an earlier state go.

  Returns:
    What the files show -> their paths, in the order in which they are worth a look.
  """
  generator, written = studio.generator, {}
  shown = jax.device_get(pictures(state.shown))
  written["the picture" if len(shown) == 1 else "the pictures"] = _write(folder, "image", shown)
  if len(shown) > 1:
    written["all in one"] = [images.write_png(images.tile(shown), folder / "images.png")]
  if generator.at is not None:
    size = LARGER * shown.shape[1]
    large = jax.jit(lambda params: jax.vmap(lambda one: generator.at(one, size))(params))(state.shown)
    written[f"drawn at {size}x{size}"] = _write(folder, "image_large", jax.device_get(large).reshape(-1, size, size, 3))
  if generator.extras is not None:
    extras = jax.device_get(jax.jit(jax.vmap(generator.extras))(state.shown))
    for name, values in extras.items():
      written[name] = _write(folder, name, values)
  kept = {path for paths in written.values() for path in paths}
  for name in _NAMES:
    for old in {*folder.glob(f"{name}.png"), *folder.glob(f"{name}_[0-9]*.png")} - kept:
      old.unlink()
  return written


def _write(folder: Path, name: str, batch: np.ndarray) -> list[Path]:
  """name.png, or name_0.png and so on where there are several."""
  if len(batch) == 1:
    return [images.write_png(batch[0], folder / f"{name}.png")]
  return [images.write_png(image, folder / f"{name}_{i}.png") for i, image in enumerate(batch)]
