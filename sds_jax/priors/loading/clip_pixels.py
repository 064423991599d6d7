"""Resizes and normalises photos for CLIP's image encoder.

The two pipelines that run Zero-1-to-3's weights in diffusers' format resize differently. `Zero123Pipeline` uses the
feature extractor, which smooths when it shrinks a photo, as Pillow does. `Zero1to3StableDiffusionPipeline` resizes as
in the training of the weights, by sampling between aligned corners. From 256 to 224 pixels the results differ at edges.
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
"""Mean and standard deviation of the colours in OpenAI's preprocessing."""

_SHARPNESS = -0.75
"""The parameter a of Keys' cubic in `aligned`, torch's value; `antialiased` has -0.5, Pillow's value."""


def normaliser(folder: Path) -> Callable[[Array], Array]:
  """Returns the function photo -> (photo - mean) / std, by a folder's preprocessor_config.json or CLIP's values.

  The photo is [..., 3] in [0, 1].

  Raises:
    CheckpointError: the file is damaged, or its mean or standard deviation is not three numbers.
  """
  path = folder / "preprocessor_config.json"
  settings = read_json(path) if path.is_file() else {}
  mean, std = _colour(path, settings, "image_mean", CLIP_MEAN), _colour(path, settings, "image_std", CLIP_STD)
  return lambda photo: (photo - mean) / std


def _colour(path: Path, settings: Mapping[str, Any], key: str, otherwise: tuple[float, ...]) -> np.ndarray:
  value = settings.get(key, otherwise)
  lowest, legal = (0.0, "positive numbers") if key == "image_std" else (-math.inf, "numbers")
  if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(
      type(v) in (int, float) and lowest < v < math.inf for v in value):
    raise CheckpointError(f"{path}: {key}={value!r} should be three {legal}; without the key CLIP's own are taken")
  return np.asarray(value, np.float32).reshape(1, 1, 1, 3)


def antialiased(photo: Array, size: int) -> Array:
  """Resizes [B, S, S, 3] in [0, 1] to [B, size, size, 3] as Pillow does, without Pillow's rounding to 8 bits.

  Smaller photos are smoothed. Rows are resized and clipped first, then columns.
  """
  if photo.shape[1] == size:
    return photo
  batch, height, _, channels = photo.shape
  for shape in ((batch, height, size, channels), (batch, size, size, channels)):
    # Clipped after each axis, as Pillow's 8 bits do: the cubic filter overshoots at edges.
    photo = jnp.clip(jax.image.resize(photo, shape, "cubic", antialias=True), 0.0, 1.0)
  return photo


def aligned(photo: Array, size: int) -> Array:
  """Resizes [B, S, S, 3] to [B, size, size, 3] without smoothing or clipping; corner pixels stay corners."""
  matrix = _between_corners(photo.shape[1], size)
  # HIGHEST, since accelerators round float32 products to fewer bits by default.
  return jnp.einsum("ia,jb,nabc->nijc", matrix, matrix, photo, precision=jax.lax.Precision.HIGHEST)


def _between_corners(before: int, after: int) -> np.ndarray:
  """Returns the weights [after, before] of a row's old pixels in its new pixels; end pixels repeat beyond the ends."""
  place = np.arange(after) * ((before - 1) / max(after - 1, 1))
  first = np.floor(place).astype(int)
  matrix = np.zeros((after, before))
  for tap in (-1, 0, 1, 2):
    np.add.at(matrix, (np.arange(after), np.clip(first + tap, 0, before - 1)), _cubic(np.abs(place - first - tap)))
  return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
  """Computes Keys' kernel (doi:10.1109/TASSP.1981.1163711) at distances x >= 0."""
  a = _SHARPNESS
  near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
