"""Files of pictures as arrays: any of the usual formats and depths, upright; or one line that says why not.

Pillow decodes. What it would do beyond that is kept from happening: formats that run other programs (EPS) or are never
pictures of objects are not tried, and its own limits and warnings are replaced by errors for this one file.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sds_jax.priors.loading.files import CheckpointError, check_file

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
LARGEST_FILE = 2**28
"""Bytes that a picture's file may have."""
LARGEST_PICTURE = 2**26
"""Pixels that a picture may have (67 million, more than most cameras take): a quarter of a gigabyte of memory."""
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of one channel of 16 bits."""


class PictureError(ValueError):
  """A picture that cannot be used; one line that names the file, what is wrong and what is legal."""


class Decoded(NamedTuple):
  """A picture as it lies in its file, upright.

  Attributes:
    premultiplied: [H, W, 3] float32 in [0, 1], colours times opacity, so that what lies under transparent pixels plays
      no part when pixels are averaged.
    opacity: [H, W] float32 in [0, 1].
    has_opacity: whether the file says anything of transparency.
  """
  premultiplied: np.ndarray
  opacity: np.ndarray
  has_opacity: bool


def decode(path: str | os.PathLike, largest_side: int) -> Decoded:
  """Reads a picture; of an animation, or of several pages, the first picture, and a printed line says so.

  A picture whose longer side has more than `largest_side` pixels is averaged over blocks of pixels until it has not.
  16 bits a channel are kept for grey, which is what maps of depth come in, also where one of its values stands for
  transparency; of colours, and of grey with a channel of opacity, Pillow keeps 8.

  Raises:
    PictureError: no such file, a folder, a pipe, an empty or damaged file, a format not in FORMATS, more than
      LARGEST_FILE or LARGEST_PICTURE.
  """
  path = Path(os.path.expanduser(path))
  try:
    check_file(path, LARGEST_FILE)
  except CheckpointError as error:
    raise PictureError(f"{error}; a picture is one file of {_formats()}") from error
  except OSError as error:
    raise PictureError(f"{path} cannot be read: {error.strerror}") from error
  # Pillow's limit on pixels is a warning first, and twice that an error: both give way to the limit below.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      image = Image.open(path, formats=_known())
    except UnidentifiedImageError as error:
      raise PictureError(
        f"{path} is no picture that can be read, or damaged at its beginning; {_formats()} can") from error
    except Image.DecompressionBombError as error:
      raise PictureError(f"{path} has too many pixels, at most {LARGEST_PICTURE} are read: make it smaller") from error
    except Exception as error:  # of damaged headers: decoders raise OSError, ValueError, SyntaxError, struct.error, ...
      raise PictureError(_damaged(path, error)) from error
    with image:
      return _decode(path, image, largest_side)


def _decode(path: Path, image: Image.Image, largest_side: int) -> Decoded:
  width, height = image.size
  if width * height > LARGEST_PICTURE:
    raise PictureError(f"{path} has {width} x {height} pixels, more than the {LARGEST_PICTURE} that are read: make it "
                       f"smaller")
  try:
    # The JPEGs of telephones carry previews as further pictures; those are no animation.
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    upright = ImageOps.exif_transpose(image)
    decoded = _arrays(upright, max(1, -(-max(width, height) // largest_side)))
  except Exception as error:  # decoders raise what they come across: OSError, EOFError, SyntaxError, zlib.error, ...
    raise PictureError(_damaged(path, error)) from error
  if several:
    print(f"{path} holds several pictures; the first of them is used")
  return decoded


def _arrays(image: Image.Image, factor: int) -> Decoded:
  """The pixels of any of Pillow's modes, averaged over blocks of factor x factor."""
  if image.mode in _DEEP or image.mode == "F":
    grey = np.asarray(image).astype(np.float32) / (1.0 if image.mode == "F" else 65535.0)
    if not 0.0 <= grey.min() <= grey.max() <= 1.0:  # of TIFF files, which may hold anything, also what is no number
      raise ValueError(f"its values lie in [{grey.min():g}, {grey.max():g}], not in [0, 1]")
    nothing = image.info.get("transparency")  # the one value that is transparent, of PNG's tRNS
    known = np.ones_like(grey) if nothing is None else (np.asarray(image) != nothing).astype(np.float32)
    grey, known = (np.asarray(Image.fromarray(values).reduce(factor)) for values in (grey * known, known))
    return Decoded(np.repeat(grey[..., None], 3, axis=-1), known, nothing is not None)
  if image.has_transparency_data:
    # Premultiplied before blocks are averaged, in 8 bits: as exact as the screen that it was made for.
    premultiplied = image.convert("RGBA").convert("RGBa") if factor > 1 else image.convert("RGBA")
    pixels = np.asarray(premultiplied.reduce(factor), np.float32) / 255.0
    opacity = pixels[..., 3]
    colours = pixels[..., :3] if factor > 1 else pixels[..., :3] * opacity[..., None]
    return Decoded(colours, opacity, True)
  colours = np.asarray(image.convert("RGB").reduce(factor), np.float32) / 255.0
  return Decoded(colours, np.ones(colours.shape[:2], np.float32), False)


def _known() -> list[str]:
  """Those of FORMATS that this build of Pillow has."""
  Image.init()
  return [name for name in FORMATS if name in Image.OPEN]


def _formats() -> str:
  *most, last = _known()
  return f"{', '.join(most)} or {last}"


def _damaged(path: Path, error: Exception) -> str:
  reason = " ".join(str(error).split()) or type(error).__name__
  return f"{path} is damaged, cut off or of a kind that cannot be read ({reason}); save or download it again"
