"""Input photos of image-to-3D: reading, background removal, framing; depth and normal maps of the photo.

Sizes and positions are fractions of a square frame. The original frame is the square around the photo; the part of the
square outside a rectangular photo is transparent.
"""
from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from sds_jax.priors.loading.decoding import Decoded, PictureError, decode

FRAMINGS = ("auto", "centre", "keep")
BACKGROUND_METHODS = ("auto", "alpha", "plain", "rembg")
CENTRED_SIDE = 0.6
"""The longest side of a centred object, as a fraction of the frame."""
AUTO_FILL, AUTO_MIDDLE = (0.35, 0.85), 0.12
"""`auto` keeps the framing if the object's longest side is in AUTO_FILL and the middle of the object's box is within
AUTO_MIDDLE of the middle of the frame."""
MIN_OPACITY = 0.1
"""Smallest opacity of a pixel of the object."""
MIN_PIXELS = 8
"""Smallest number of object pixels, in the file and in the frame."""
_LARGEST_SIDE = 2048
"""Photos are decoded with at most this number of pixels a side, or twice the requested size if larger."""


class Frame(NamedTuple):
  """The move of a photo into a new frame.

  The point (u, v) relative to the middle of the original frame moves to scale (u, v) + shift in the new frame.

  Attributes:
    scale: factor of lengths.
    shift: (right, down), fractions of the frame.
    aspect: width over height of the original photo, to check maps of the photo against; None if unknown.
  """
  scale: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)
  aspect: float | None = None


class Photo(NamedTuple):
  """A photo of an object without the background.

  Attributes:
    rgb: [size, size, 3] float32 in [0, 1], on white.
    opacity: [size, size] float32 in [0, 1].
    frame: the move from the original frame.
  """
  rgb: np.ndarray
  opacity: np.ndarray
  frame: Frame


class PhotoMap(NamedTuple):
  """A depth or normal map of a photo, in the photo's frame.

  Attributes:
    values: [size, size, channels] float32 in [0, 1] as in the file; 0 where the opacity is 0.
    opacity: [size, size] float32 in [0, 1], the opacity of the map's file; 0 outside the map.
  """
  values: np.ndarray
  opacity: np.ndarray


def read_photo(path: str | os.PathLike, size: int, framing: str = "auto", background: str = "auto") -> Photo:
  """Reads a photo of an object.

  Prints notes about the removed background and cut edges.

  Args:
    path: a file in one of `decoding.FORMATS`.
    size: pixels a side of the result.
    framing: "centre" moves the middle of the object's box to the middle of the frame and scales the longest side to
      CENTRED_SIDE of the frame; "keep" keeps the original frame; "auto" keeps the original frame if the object lies
      wholly within the photo and meets AUTO_FILL and AUTO_MIDDLE, and otherwise centres the object.
    background: how to separate the object. "alpha": by the file's transparency; "plain": by the plain colour of the
      border; "rembg": by the network of the library rembg; "auto": by the first available of the three.

  Raises:
    PictureError: the file cannot be read (see `decoding.decode`), `framing` or `background` is illegal, the background
      cannot be removed, or almost no object is left.
  """
  for name, value, legal in (("framing", framing, FRAMINGS), ("background", background, BACKGROUND_METHODS)):
    if value not in legal:
      raise PictureError(f"{name}={value!r} is none of {', '.join(legal)}")
  # Decoded at twice the requested size at least, since centring may enlarge a small object.
  colours, opacity = _separate_object(path, decode(path, max(_LARGEST_SIDE, 2 * size)), background)
  from sds_jax.io import matting  # SciPy takes half a second to import, and only jobs with a photo need it
  mask = matting.remove_specks(opacity > MIN_OPACITY)
  if mask.sum() < MIN_PIXELS:
    raise PictureError(f"{path} shows no object: {mask.sum()} pixels are left without the background, at least "
                       f"{MIN_PIXELS} are needed; give a larger photo, or another background than {background!r}")
  frame = _choose_frame(path, mask, framing)
  colours, opacity = _move_with_opacity(colours, opacity, frame, size)
  # Counted again: a long and thin object, or a small object without centring, may vanish in the move.
  if (opacity > MIN_OPACITY).sum() < MIN_PIXELS:
    where = f"{path} shows an object of fewer than {MIN_PIXELS} pixels at size={size} and framing={framing!r}"
    raise PictureError(f"{where}: it is too long and thin" if frame.scale > 1.0 or _longest(mask) >= CENTRED_SIDE else
                       f"{where}; framing='centre' makes it larger")
  return Photo(colours * opacity[..., None] + (1.0 - opacity[..., None]), opacity, frame)


def read_map(path: str | os.PathLike, frame: Frame, size: int, channels: int) -> PhotoMap:
  """Reads a depth or normal map of a photo.

  The map moves as the photo. Values are those of the file, 0..255 or 0..65535 mapped to [0, 1] (colours have 8 bits);
  transparent pixels do not affect the values. The caller interprets the values.

  Args:
    path: a file in one of `decoding.FORMATS`.
    frame: the frame of the photo.
    size: pixels a side of the result.
    channels: 1 (depth) or 3 (normals).

  Raises:
    PictureError: the file cannot be read, has another aspect ratio than the photo, is grey instead of coloured or
      coloured instead of grey, or has no content.
  """
  decoded = decode(path, max(_LARGEST_SIDE, 2 * size), colours=False)
  height, width = decoded.opacity.shape
  # Half a pixel of the map on each side: a small map of a photo has rounded sides.
  if frame.aspect is not None and abs(width / height / frame.aspect - 1.0) > 0.01 + 0.5 / width + 0.5 / height:
    raise PictureError(f"{path} is {width / height:.3g} times as wide as it is high, its photo {frame.aspect:.3g} "
                       f"times; a map has to show the same area as the photo")
  known = decoded.opacity > 0.5
  if known.sum() < MIN_PIXELS:
    raise PictureError(f"{path} is known at {known.sum()} pixels, the others being transparent; at least "
                       f"{MIN_PIXELS} are needed")
  values = decoded.premultiplied
  grey = bool(np.abs(values - values[..., :1]).max() <= 2.5 / 255)  # JPEG's colours are not quite grey
  if channels not in (1, 3):
    raise PictureError(f"channels={channels} is neither 1 (depth) nor 3 (normals)")
  if channels == 1 and not grey:
    raise PictureError(f"{path} has colours; a map of one channel has to be grey, without a colour scale")
  if channels == 1 and np.ptp((values[..., 0] / np.maximum(decoded.opacity, 1e-6))[known]) < 0.5 / 65535:
    raise PictureError(f"{path} has one value all over and so no depth")
  if channels == 3 and grey:
    raise PictureError(f"{path} is grey; a map of {channels} channels needs colours")
  return PhotoMap(*_move_with_opacity(values[..., :channels], decoded.opacity, frame, size))


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes a square image.

  [S, S, C] -> [size, size, C] float32. Averages over areas when `size` is smaller.
  """
  return _move(image, Frame(), size)


def _separate_object(path: str | os.PathLike, decoded: Decoded, background: str) -> tuple[np.ndarray, np.ndarray]:
  """Separates the object from the background.

  Returns premultiplied colours [H, W, 3] and opacity [H, W].
  """
  rgb = decoded.premultiplied + (1.0 - decoded.opacity[..., None])  # transparent pixels become white
  transparent = decoded.has_opacity and float(decoded.opacity.min()) < 0.5  # a nearly opaque alpha channel is noise
  if background == "alpha" and not transparent:
    raise PictureError(f"{path} has no transparent pixels, which background='alpha' needs; use 'plain' or 'rembg'")
  if background == "alpha" or (background == "auto" and transparent):
    return decoded.premultiplied, decoded.opacity
  from sds_jax.io import matting
  colour, share = matting.border_colour(rgb)
  name = "#" + "".join(f"{round(float(255 * c)):02x}" for c in colour)
  if background == "plain" and share < matting.PLAIN_SHARE:
    raise PictureError(f"{path} has no plain background, which background='plain' needs: {share:.0%} of its border is "
                       f"of one colour ({name}), at least {matting.PLAIN_SHARE:.0%} has to be; use 'rembg'")
  if background == "plain" or (background == "auto" and share >= matting.PLAIN_SHARE):
    print(f"{path}: the background is removed by the plain colour {name}; if parts of the object are lost, give a "
          f"photo with a transparent background, or background='rembg'")
    matte = matting.matte_by_colour(rgb, colour)
    for note in matte.notes:
      print(f"{path}: {note}")
    return matte.premultiplied, matte.opacity
  try:
    opacity = matting.matte_by_network(rgb)
  except matting.MattingError as error:
    raise PictureError(f"{path} has a background that is neither transparent nor plain, and {error}"
                       if background == "auto" else f"{path}: {error}") from error
  print(f"{path}: the background is removed by the network {matting.NETWORK} of rembg")
  return rgb * opacity[..., None], opacity


def _choose_frame(path: str | os.PathLike, mask: np.ndarray, framing: str) -> Frame:
  """Returns the move of a photo.

  `mask` [H, W] is the object's mask.
  """
  height, width = mask.shape
  side = max(height, width)
  # Plus 1 below: the box reaches to the far side of the last pixel.
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
  cut = top == 0 or left == 0 or bottom == height or right == width
  if cut:
    print(f"{path}: the object reaches the edge of the photo and will end in a flat face there")
  # In units of the longer side, the side of the square frame.
  longest = _longest(mask)
  middle = ((left + right - width) / (2 * side), (top + bottom - height) / (2 * side))  # from the frame's middle
  aspect = width / height
  fits = not cut and AUTO_FILL[0] <= longest <= AUTO_FILL[1] and max(map(abs, middle)) <= AUTO_MIDDLE
  if framing == "keep" or (framing == "auto" and fits):
    return Frame(aspect=aspect)
  # The middle is scaled as well, and the shift takes it to the middle of the frame.
  scale = CENTRED_SIDE / longest
  return Frame(float(scale), (float(-scale * middle[0]), float(-scale * middle[1])), aspect)


def _longest(mask: np.ndarray) -> float:
  """Returns the longest side of the mask's box.

  A fraction of the frame; `mask` is [H, W].
  """
  return max(np.ptp(indices) + 1 for indices in np.nonzero(mask)) / max(mask.shape)


def _move_with_opacity(premultiplied: np.ndarray, opacity: np.ndarray, frame: Frame,
                        size: int) -> tuple[np.ndarray, np.ndarray]:
  """Moves premultiplied colours and opacity.

  Returns values [size, size, C] and opacity [size, size] in [0, 1]. The values are not premultiplied, and 0 where the
  opacity is 0.
  """
  # Resampled with premultiplied colours, so that colours under transparent pixels do not bleed into the object.
  moved = _move(np.dstack([premultiplied, opacity]), frame, size)
  # A sharp filter overshoots by the same factor in the premultiplied colours and the opacity, so the ratio does not.
  opacity = np.where(moved[..., -1] > 0.5 / 255, moved[..., -1], 0.0)
  values = np.where(opacity[..., None] > 0, moved[..., :-1] / np.maximum(opacity, 1e-6)[..., None], 0.0)
  return np.clip(values, 0.0, 1.0).astype(np.float32), np.clip(opacity, 0.0, 1.0).astype(np.float32)


def _move(image: np.ndarray, frame: Frame, size: int) -> np.ndarray:
  """Moves an image into a new frame.

  [H, W, C] -> [size, size, C] float32, 0 outside the image.
  """
  # Axis by axis, so that the square around a long and thin photo is never in memory.
  height, width = image.shape[:2]
  side = max(height, width)
  for axis, length, shift in ((1, width, frame.shift[0]), (0, height, frame.shift[1])):
    start, stop = (length / 2 + side * (edge - shift) / frame.scale for edge in (-0.5, 0.5))
    image = _resample_axis(image, axis, start, stop, size)
  return image


def _resample_axis(image: np.ndarray, axis: int, start: float, stop: float, size: int) -> np.ndarray:
  """Resamples an interval of an axis to `size` pixels.

  The interval `start` .. `stop` is in pixels and may reach outside.
  """
  before, after = max(0, math.ceil(-start)), max(0, math.ceil(stop - image.shape[axis]))
  image = np.pad(image, [(before, after) if i == axis else (0, 0) for i in range(3)])
  height, width = image.shape[:2]
  start, stop = start + before, min(stop + before, image.shape[axis])
  shape, box = ((size, height), (start, 0, stop, height)) if axis == 1 else ((width, size), (0, start, width, stop))
  # Shrinking: nearly the mean over an area. Enlarging: a smooth filter. Pillow widens both filters by the scale.
  sampling = Image.Resampling.HAMMING if stop - start >= size else Image.Resampling.BICUBIC
  # Pillow resizes float32 images with a single channel only (mode F).
  channels = [Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(shape, sampling, box)
              for c in range(image.shape[-1])]
  return np.stack([np.asarray(channel) for channel in channels], axis=-1)
