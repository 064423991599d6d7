"""The picture that an object is made from: read, freed of its background, framed; and maps that belong to it.

Sizes and places are fractions of a square frame. The picture's own frame is the square around it: what a picture that
is not square lacks of it is transparent.
"""
from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from sds_jax.io import matting
from sds_jax.priors.loading.decoding import Decoded, PictureError, decode

FRAMINGS = ("auto", "centre", "keep")
BACKGROUND_METHODS = ("auto", "alpha", "plain", "rembg")
CENTRED_SIDE = 0.6
"""The longest side of a centred object, as a fraction of the frame."""
AUTO_FILL, AUTO_MIDDLE = (0.35, 0.85), 0.12
"""`auto` keeps an object whose longest side is so large, and the middle of whose box is that near to the frame's."""
MIN_OPACITY = 0.1
"""Opacity from which on a pixel shows the object."""
MIN_PIXELS = 8
"""Pixels that an object has to have, in the file and in the frame."""
_LARGEST_SIDE = 2048
"""A picture is looked at with no more pixels a side than this, or than twice the size that is asked for."""


class Frame(NamedTuple):
  """How a picture was moved: what was at (u, v) from the middle of its own frame is at scale (u, v) + shift in the new.

  Attributes:
    scale: of lengths.
    shift: (right, down), fractions of the frame.
    aspect: width over height of the picture as it came, to know its maps by; None where it is not known.
  """
  scale: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)
  aspect: float | None = None


class Photo(NamedTuple):
  """An object as a picture shows it.

  Attributes:
    rgb: [size, size, 3] float32 in [0, 1], on white.
    opacity: [size, size] float32 in [0, 1].
    frame: how it was moved.
  """
  rgb: np.ndarray
  opacity: np.ndarray
  frame: Frame


class PhotoMap(NamedTuple):
  """What is known of a picture's pixels besides their colour.

  Attributes:
    values: [size, size, channels] float32 in [0, 1] as in the file; 0 where opacity is.
    opacity: [size, size] float32 in [0, 1], that of the map's own file; 0 outside of it.
  """
  values: np.ndarray
  opacity: np.ndarray


def read_photo(path: str | os.PathLike, size: int, framing: str = "auto", background: str = "auto") -> Photo:
  """Reads the picture of an object; prints a line about each thing that its user may want to know.

  Args:
    path: a file of `decoding.FORMATS`.
    size: pixels a side of what comes out.
    framing: "centre" moves the middle of the object's box to the middle and makes its longest side CENTRED_SIDE of the
      frame; "keep" leaves it; "auto" leaves it where it lies wholly within the picture and as AUTO_FILL and
      AUTO_MIDDLE ask, and else centres it.
    background: what tells the object. "alpha": the file's transparency; "plain": the one colour of the border; "rembg":
      the network of that library; "auto": the first of them that there is.

  Raises:
    PictureError: the file cannot be read (see `decoding.decode`), `framing` or `background` is none of the above, the
      background cannot be taken out, or hardly anything is left.
  """
  for name, value, legal in (("framing", framing, FRAMINGS), ("background", background, BACKGROUND_METHODS)):
    if value not in legal:
      raise PictureError(f"{name}={value!r} is none of {', '.join(legal)}")
  colours, opacity = _object(path, decode(path, max(_LARGEST_SIDE, 2 * size)), background)
  mask = matting.remove_specks(opacity > MIN_OPACITY)
  if mask.sum() < MIN_PIXELS:
    raise PictureError(f"{path} shows no object: {mask.sum()} pixels are left without the background, at least "
                       f"{MIN_PIXELS} are needed; give a larger picture, or another background than {background!r}")
  frame = _frame(path, mask, framing)
  colours, opacity = _moved_with_opacity(colours, opacity, frame, size)
  if (opacity > MIN_OPACITY).sum() < MIN_PIXELS:
    where = f"{path} shows an object of fewer than {MIN_PIXELS} pixels at size={size} and framing={framing!r}"
    raise PictureError(f"{where}: it is too long and thin" if frame.scale > 1.0 or _longest(mask) >= CENTRED_SIDE else
                       f"{where}; framing='centre' makes it larger")
  return Photo(colours * opacity[..., None] + (1.0 - opacity[..., None]), opacity, frame)


def read_map(path: str | os.PathLike, frame: Frame, size: int, channels: int) -> PhotoMap:
  """Reads a map of depth (one channel) or of normals (three) that belongs to a picture, and moves it as that was moved.

  Values are those of the file, 0..255 or 0..65535 as [0, 1] (of colours 8 bits are kept); transparent pixels play no
  part in them. What they mean is left to the caller.

  Args:
    frame: that of the picture.
    channels: 1 or 3.

  Raises:
    PictureError: the file cannot be read, it is of another shape than the picture, it is grey where colours are
      wanted, or the other way round, or there is nothing in it.
  """
  decoded = decode(path, max(_LARGEST_SIDE, 2 * size))
  height, width = decoded.opacity.shape
  # As fine as the map's pixels can tell; the picture is rarely the coarser one.
  if frame.aspect is not None and abs(width / height / frame.aspect - 1.0) > 0.01 + 0.5 / width + 0.5 / height:
    raise PictureError(f"{path} is {width / height:.3g} times as wide as it is high, its picture {frame.aspect:.3g} "
                       f"times; a map has to show the same as the picture")
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
    raise PictureError(f"{path} has one value all over, which tells nothing of depth")
  if channels == 3 and grey:
    raise PictureError(f"{path} is grey; a map of {channels} channels needs colours")
  return PhotoMap(*_moved_with_opacity(values[..., :channels], decoded.opacity, frame, size))


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
  """A square image [S, S, C] at [size, size, C] float32, averaged over areas where that is smaller."""
  return _moved(image, Frame(), size)


def _object(path: str | os.PathLike, decoded: Decoded, background: str) -> tuple[np.ndarray, np.ndarray]:
  """Premultiplied colours [H, W, 3] and opacity [H, W] of the object alone."""
  rgb = decoded.premultiplied + (1.0 - decoded.opacity[..., None])  # on white, should there be transparent pixels
  transparent = decoded.has_opacity and float(decoded.opacity.min()) < 0.5  # a channel that is all but opaque is noise
  if background == "alpha" and not transparent:
    raise PictureError(f"{path} has no transparent pixels, which background='alpha' needs; use 'plain' or 'rembg'")
  if background == "alpha" or (background == "auto" and transparent):
    return decoded.premultiplied, decoded.opacity
  colour, share = matting.border_colour(rgb)
  name = "#" + "".join(f"{round(float(255 * c)):02x}" for c in colour)
  if background == "plain" and share < matting.PLAIN_SHARE:
    raise PictureError(f"{path} has no plain background, which background='plain' needs: {share:.0%} of its border is "
                       f"of one colour ({name}), at least {matting.PLAIN_SHARE:.0%} has to be; use 'rembg'")
  if background == "plain" or (background == "auto" and share >= matting.PLAIN_SHARE):
    print(f"{path}: its background is taken out by its plain colour {name}; where that takes too much, give a picture "
          f"with a transparent background, or background='rembg'")
    return matting.matte_by_colour(rgb, colour)
  try:
    opacity = matting.matte_by_network(rgb)
  except matting.MattingError as error:
    raise PictureError(f"{path} has a background that is neither transparent nor plain, and {error}"
                       if background == "auto" else f"{path}: {error}") from error
  print(f"{path}: its background is taken out by the network {matting.NETWORK} of rembg")
  return rgb * opacity[..., None], opacity


def _frame(path: str | os.PathLike, mask: np.ndarray, framing: str) -> Frame:
  """How a picture with the object `mask` [H, W] is to be moved."""
  height, width = mask.shape
  side = max(height, width)
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
  cut = top == 0 or left == 0 or bottom == height or right == width
  if cut:
    print(f"{path}: the object reaches the edge of the picture; what is cut off there will end in a flat face")
  longest = _longest(mask)
  middle = ((left + right - width) / (2 * side), (top + bottom - height) / (2 * side))  # from the frame's middle
  aspect = width / height
  fits = not cut and AUTO_FILL[0] <= longest <= AUTO_FILL[1] and max(map(abs, middle)) <= AUTO_MIDDLE
  if framing == "keep" or (framing == "auto" and fits):
    return Frame(aspect=aspect)
  scale = CENTRED_SIDE / longest
  return Frame(float(scale), (float(-scale * middle[0]), float(-scale * middle[1])), aspect)


def _longest(mask: np.ndarray) -> float:
  """The longest side of the box around `mask` [H, W], as a fraction of the frame."""
  return max(np.ptp(indices) + 1 for indices in np.nonzero(mask)) / max(mask.shape)


def _moved_with_opacity(premultiplied: np.ndarray, opacity: np.ndarray, frame: Frame,
                        size: int) -> tuple[np.ndarray, np.ndarray]:
  """Values [size, size, C] (no longer premultiplied; 0 where nothing is) and opacity [size, size], both in [0, 1]."""
  moved = _moved(np.dstack([premultiplied, opacity]), frame, size)
  # A sharp filter overshoots by the same share in both, and so not in their ratio.
  opacity = np.where(moved[..., -1] > 0.5 / 255, moved[..., -1], 0.0)
  values = np.where(opacity[..., None] > 0, moved[..., :-1] / np.maximum(opacity, 1e-6)[..., None], 0.0)
  return np.clip(values, 0.0, 1.0).astype(np.float32), np.clip(opacity, 0.0, 1.0).astype(np.float32)


def _moved(image: np.ndarray, frame: Frame, size: int) -> np.ndarray:
  """An image [H, W, C] in its new frame, [size, size, C] float32; nothing (0) where it does not reach.

  One axis after the other, so that the square around a long and thin picture is never held.
  """
  height, width = image.shape[:2]
  side = max(height, width)
  for axis, length, shift in ((1, width, frame.shift[0]), (0, height, frame.shift[1])):
    start, stop = (length / 2 + side * (edge - shift) / frame.scale for edge in (-0.5, 0.5))
    image = _axis(image, axis, start, stop, size)
  return image


def _axis(image: np.ndarray, axis: int, start: float, stop: float, size: int) -> np.ndarray:
  """The stretch from `start` to `stop` (in pixels, which may lie outside) of one axis, resampled to `size` pixels."""
  before, after = max(0, math.ceil(-start)), max(0, math.ceil(stop - image.shape[axis]))
  image = np.pad(image, [(before, after) if i == axis else (0, 0) for i in range(3)])
  height, width = image.shape[:2]
  start, stop = start + before, min(stop + before, image.shape[axis])
  shape, box = ((size, height), (start, 0, stop, height)) if axis == 1 else ((width, size), (0, start, width, stop))
  # Downwards a filter that is nearly the mean over an area, upwards a smooth one; Pillow widens both as it should.
  sampling = Image.Resampling.HAMMING if stop - start >= size else Image.Resampling.BICUBIC
  channels = [Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(shape, sampling, box)
              for c in range(image.shape[-1])]
  return np.stack([np.asarray(channel) for channel in channels], axis=-1)
