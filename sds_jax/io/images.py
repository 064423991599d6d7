"""PNG files, contact sheets, colour maps of depth and normals.

Arrays are float [..., H, W, 3] in [0, 1].
"""
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sds_jax.io.files import atomic_write

_DEPTH_STOPS = np.array([  # near to far; luminance falls steadily, so that the map is readable in grey, too
  [1.00, 0.96, 0.72], [0.99, 0.75, 0.38], [0.93, 0.45, 0.36],
  [0.68, 0.25, 0.48], [0.38, 0.17, 0.50], [0.10, 0.09, 0.28]])


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts floats in [0, 1] to 0..255.

  Rounded and clipped; NaN becomes 0.
  """
  # NaN is removed first: the integer that NaN converts to differs between machines.
  return np.rint(np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0.0, 1.0) * 255.0).astype(np.uint8)


def write_png(image: np.ndarray, path: str | os.PathLike) -> Path:
  """Writes an 8-bit PNG; returns the path.

  The write is atomic.

  Args:
    image: [H, W, 3], grey [H, W], or with opacity [H, W, 4].
    path: the file.

  Raises:
    ValueError: `image` has another shape.
  """
  pixels = to_uint8(image)
  if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))):
    raise ValueError(f"an image is [H, W, 3], [H, W, 4] or [H, W], got {pixels.shape}; index or tile a batch first")
  with atomic_write(path) as file:
    Image.fromarray(pixels).save(file, format="PNG")
  return Path(path)


def tile(images: np.ndarray, columns: int | None = None, gap: int = 2, background: float = 1.0) -> np.ndarray:
  """Arranges a batch as a single image, row by row.

  Args:
    images: the batch.
    columns: images per row; None for a nearly square sheet.
    gap: pixels between images.
    background: grey level of the gaps, in [0, 1].
  """
  images = np.asarray(images, np.float32)
  count, height, width, channels = images.shape
  columns = columns or math.ceil(math.sqrt(count))
  rows = math.ceil(count / columns)
  # Minus a gap, because gaps lie between images and not behind the last.
  sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, np.float32)
  for index, image in enumerate(images):
    top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
    sheet[top:top + height, left:left + width] = image
  return sheet


def tile_rows(rows: Sequence[np.ndarray], labels: Sequence[str] | None = None, gap: int = 2,
              titles: Sequence[str] | None = None) -> np.ndarray:
  """Arranges batches as rows of a single image.

  Args:
    rows: the batches.
    labels: a label for each row, in a column on the left.
    gap: pixels between images.
    titles: N + 1 titles in a row on top, the first above the column of labels; used only with `labels`.

  Raises:
    ValueError: the number of labels is not the number of rows.
  """
  if labels is not None and len(labels) != len(rows):
    raise ValueError(f"{len(labels)} labels for {len(rows)} rows")
  sheet = tile(np.concatenate([np.asarray(row, np.float32) for row in rows]), columns=len(rows[0]), gap=gap)
  if labels is None:
    return sheet
  height, width = np.asarray(rows[0]).shape[1:3]
  column = _label_column(labels, height, gap, sheet.shape[0], widest=titles[0] if titles else "")
  body = np.concatenate([column, sheet], axis=1)
  return body if titles is None else np.concatenate([_title_row(titles, column.shape[1], width, gap), body])


def depth_image(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
  """Maps depth to colours over white.

  Depth [..., H, W] in world units -> colours [..., H, W, 3]. Near is light, far is dark. The colour scale covers the
  2nd to the 98th percentile of the depth where `opacity` [..., H, W] exceeds 1/2, over the whole batch.
  """
  depth, opacity = np.asarray(depth, np.float32), np.asarray(opacity, np.float32)
  solid = depth[opacity > 0.5]
  # Percentiles and not extremes: a few stray pixels would flatten the colours of the object.
  near, far = np.percentile(solid, [2.0, 98.0]) if solid.size else (0.0, 1.0)
  # The floor keeps an object of one depth from a division by 0.
  level = np.clip((depth - near) / max(far - near, 1e-6), 0.0, 1.0)
  stops = np.linspace(0.0, 1.0, len(_DEPTH_STOPS))
  colours = np.stack([np.interp(level, stops, _DEPTH_STOPS[:, c]) for c in range(3)], axis=-1).astype(np.float32)
  return _over_white(colours, opacity)


def normal_image(normals: np.ndarray, opacity: np.ndarray) -> np.ndarray:
  """Maps normals to colours (n + 1) / 2 over white.

  [..., H, W, 3] -> [..., H, W, 3]. The normals are in world axes, of any length; `opacity` is [..., H, W].
  """
  normals = np.asarray(normals, np.float32)
  # The floor keeps pixels without a normal at 0 instead of NaN.
  unit = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
  return _over_white(0.5 * (unit + 1.0), np.asarray(opacity, np.float32))


def _over_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
  weight = np.clip(opacity, 0.0, 1.0)[..., None]
  return weight * colours + (1.0 - weight)


_INK, _TITLE_SIZE = (70, 74, 82), 12


def _label_column(labels: Sequence[str], height: int, gap: int, total: int, widest: str = "") -> np.ndarray:
  """Draws the column of labels [total, width, 3].

  The column is white, and wide enough for all labels.
  """
  font = ImageFont.load_default(size=max(10, min(14, height // 4)))
  title = ImageFont.load_default(size=_TITLE_SIZE).getlength(widest)
  width = math.ceil(max([title, *(font.getlength(label) for label in labels)])) + 12
  canvas = Image.new("RGB", (width, total), "white")
  draw = ImageDraw.Draw(canvas)
  for row, label in enumerate(labels):
    draw.text((width - 6, row * (height + gap) + height / 2), label, fill=_INK, font=font, anchor="rm")
  return np.asarray(canvas, np.float32) / 255.0


def _title_row(titles: Sequence[str], left: int, width: int, gap: int) -> np.ndarray:
  """Draws the row of titles.

  The first title is over the `left` column, the others over the images.
  """
  font = ImageFont.load_default(size=_TITLE_SIZE)
  canvas = Image.new("RGB", (left + (len(titles) - 1) * (width + gap) - gap, _TITLE_SIZE + 8), "white")
  draw, middle = ImageDraw.Draw(canvas), canvas.height / 2
  draw.text((left - 6, middle), titles[0], fill=_INK, font=font, anchor="rm")
  for i, title in enumerate(titles[1:]):
    draw.text((left + i * (width + gap) + width / 2, middle), title, fill=_INK, font=font, anchor="mm")
  return np.asarray(canvas, np.float32) / 255.0
