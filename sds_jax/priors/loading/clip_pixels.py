"""Pictures as CLIP's image encoder takes them: bicubically resized, and normalised by its feature extractor's settings.

The two pipelines that run Zero-1-to-3's weights in diffusers' format resize in two ways. That of class
`Zero123Pipeline` asks the feature extractor, which smooths where a picture becomes smaller, as Pillow does; that of
class `Zero1to3StableDiffusionPipeline` keeps to the code that the weights were trained with, which samples between
aligned corners. At 256 to 224 pixels the two differ at edges.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.types import Array

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's preprocessing."""

_SHARPNESS = -0.75
"""Of the cubic that is sampled between aligned corners, which is torch's; the other has -0.5, as Pillow's."""


def normaliser(folder: Path) -> Callable[[Array], Array]:
  """(picture [..., 3] in [0, 1]) -> (picture - mean) / std by a folder's preprocessor_config.json, or CLIP's own.

  Raises:
    CheckpointError: the file is damaged, or its mean or standard deviation is not three numbers.
  """
  path = folder / "preprocessor_config.json"
  settings = read_json(path) if path.is_file() else {}
  mean, std = _colour(path, settings, "image_mean", CLIP_MEAN), _colour(path, settings, "image_std", CLIP_STD)
  return lambda picture: (picture - mean) / std


def _colour(path: Path, settings: Mapping[str, Any], key: str, otherwise: tuple[float, ...]) -> np.ndarray:
  value = settings.get(key, otherwise)
  lowest, legal = (0.0, "positive numbers") if key == "image_std" else (-math.inf, "numbers")
  if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(
      type(v) in (int, float) and lowest < v < math.inf for v in value):
    raise CheckpointError(f"{path}: {key}={value!r} should be three {legal}; without the key CLIP's own are taken")
  return np.asarray(value, np.float32).reshape(1, 1, 1, 3)


def antialiased(picture: Array, size: int) -> Array:
  """[B, S, S, 3] in [0, 1] at [B, size, size, 3] as Pillow does it, but for its rounding to 8 bits: smoothed where it
  becomes smaller, first each row and then each column, both clipped."""
  if picture.shape[1] == size:
    return picture
  batch, height, _, channels = picture.shape
  for shape in ((batch, height, size, channels), (batch, size, size, channels)):
    picture = jnp.clip(jax.image.resize(picture, shape, "cubic", antialias=True), 0.0, 1.0)
  return picture


def aligned(picture: Array, size: int) -> Array:
  """[B, S, S, 3] at [B, size, size, 3], neither smoothed nor clipped; the outermost pixels keep their places."""
  matrix = _between_corners(picture.shape[1], size)
  return jnp.einsum("ia,jb,nabc->nijc", matrix, matrix, picture, precision=jax.lax.Precision.HIGHEST)


def _between_corners(before: int, after: int) -> np.ndarray:
  """[after, before]: the weights of a row's pixels in each of the new ones; pixels beyond the ends repeat these."""
  place = np.arange(after) * ((before - 1) / max(after - 1, 1))
  first = np.floor(place).astype(int)
  matrix = np.zeros((after, before))
  for tap in (-1, 0, 1, 2):
    np.add.at(matrix, (np.arange(after), np.clip(first + tap, 0, before - 1)), _cubic(np.abs(place - first - tap)))
  return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' kernel (doi:10.1109/TASSP.1981.1163711) at distances x >= 0."""
  a = _SHARPNESS
  near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
