"""Decodes image files of the usual formats and bit depths into upright arrays.

Pillow decodes. Formats that run other programs (EPS) or never hold photos of objects are not tried, and Pillow's own
limits and warnings are replaced by one-line errors that name the file.
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
"""Upper limit of the bytes of an image file."""
LARGEST_PICTURE = 2**26
"""Upper limit of the pixels of an image (67 million, more than most cameras take): a quarter of a gigabyte."""
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of one channel of 16 bits."""


class PictureError(ValueError):
  """An unusable image file; one line names the file, the problem and the legal formats."""


class Decoded(NamedTuple):
  """A decoded image, upright.

  Attributes:
    premultiplied: [H, W, 3] float32 in [0, 1], colours times opacity, so that the colours of transparent pixels have no
      effect when pixels are averaged.
    opacity: [H, W] float32 in [0, 1].
    has_opacity: whether the file has an opacity channel or a transparent colour.
  """
  premultiplied: np.ndarray
  opacity: np.ndarray
  has_opacity: bool


def decode(path: str | os.PathLike, largest_side: int) -> Decoded:
  """Reads an image file; of an animation or a file with several pages, the first image, with a printed note.

  An image whose longer side exceeds `largest_side` pixels is averaged over blocks of pixels to at most that size. Grey
  images without an opacity channel keep 16 bits (depth maps), also where one grey value stands for transparency. Pillow
  reduces colours, and grey with an opacity channel, to 8 bits.

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
  # Pillow warns above its limit of pixels and raises above twice that limit; LARGEST_PICTURE replaces both.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      image = Image.open(path, formats=_known())
    except UnidentifiedImageError as error:
      raise PictureError(
        f"{path} is no picture that can be read, or damaged at its beginning; {_formats()} can") from error
    except Image.DecompressionBombError as error:
      raise PictureError(f"{path} has too many pixels, at most {LARGEST_PICTURE} are read: make it smaller") from error
    except Exception as error:  # damaged headers raise OSError, ValueError, SyntaxError, struct.error, ...
      raise PictureError(_damaged(path, error)) from error
    with image:
      return _decode(path, image, largest_side)


def _decode(path: Path, image: Image.Image, largest_side: int) -> Decoded:
  width, height = image.size
  if width * height > LARGEST_PICTURE:
    raise PictureError(f"{path} has {width} x {height} pixels, more than the {LARGEST_PICTURE} that are read: make it "
                       f"smaller")
  try:
    # JPEGs of telephones hold previews as further images; these files are no animations.
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    upright = ImageOps.exif_transpose(image)
    decoded = _arrays(upright, max(1, -(-max(width, height) // largest_side)))
  except Exception as error:  # decoders raise OSError, EOFError, SyntaxError, zlib.error, ...
    raise PictureError(_damaged(path, error)) from error
  if several:
    print(f"{path} holds several pictures; the first of them is used")
  return decoded


def _arrays(image: Image.Image, factor: int) -> Decoded:
  """Returns the pixels of an image in any of Pillow's modes, averaged over blocks of factor x factor."""
  if image.mode in _DEEP or image.mode == "F":
    grey = np.asarray(image).astype(np.float32) / (1.0 if image.mode == "F" else 65535.0)
    if not 0.0 <= grey.min() <= grey.max() <= 1.0:  # TIFF files may hold any number, and NaN
      raise ValueError(f"its values lie in [{grey.min():g}, {grey.max():g}], not in [0, 1]")
    nothing = image.info.get("transparency")  # the one transparent value, PNG's tRNS
    known = np.ones_like(grey) if nothing is None else (np.asarray(image) != nothing).astype(np.float32)
    grey, known = (np.asarray(Image.fromarray(values).reduce(factor)) for values in (grey * known, known))
    return Decoded(np.repeat(grey[..., None], 3, axis=-1), known, nothing is not None)
  if image.has_transparency_data:
    # Blocks are averaged after premultiplication, so transparent pixels have no weight; 8 bits suffice for 8-bit files.
    premultiplied = image.convert("RGBA").convert("RGBa") if factor > 1 else image.convert("RGBA")
    pixels = np.asarray(premultiplied.reduce(factor), np.float32) / 255.0
    opacity = pixels[..., 3]
    colours = pixels[..., :3] if factor > 1 else pixels[..., :3] * opacity[..., None]
    return Decoded(colours, opacity, True)
  colours = np.asarray(image.convert("RGB").reduce(factor), np.float32) / 255.0
  return Decoded(colours, np.ones(colours.shape[:2], np.float32), False)


def _known() -> list[str]:
  """Returns the entries of FORMATS that this build of Pillow supports."""
  Image.init()
  return [name for name in FORMATS if name in Image.OPEN]


def _formats() -> str:
  *most, last = _known()
  return f"{', '.join(most)} or {last}"


def _damaged(path: Path, error: Exception) -> str:
  reason = " ".join(str(error).split()) or type(error).__name__
  return f"{path} is damaged, cut off or of a kind that cannot be read ({reason}); save or download it again"
