"""Decodes image files of the usual formats and bit depths into upright arrays.

Pillow decodes. Formats that run other programs (EPS) or never hold photos of objects are not tried, and Pillow's own
limits and warnings are replaced by one-line errors that name the file. Colours are converted to sRGB where the file
says that they are others.
"""
from __future__ import annotations

import io
import os
from pathlib import Path
import time
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sds_jax.priors.loading.colour_profiles import Conversion, find_conversion
from sds_jax.priors.loading.files import CheckpointError, check_file

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
LARGEST_FILE = 2**28
"""Upper limit of the bytes of an image file."""
LARGEST_PICTURE = 2**26
"""Upper limit of the pixels of an image (67 million, more than most cameras take): a quarter of a gigabyte."""
LONGEST = 10.0
"""Upper limit of the seconds of computing that a file takes; the largest photos of cameras take two or three."""
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of one channel of 16 bits."""


class PictureError(ValueError):
  """An unusable image file; one line names the file, the problem and the legal formats."""


class _TooSlow(Exception):
  """A file took longer than LONGEST."""


class _TimedFile(io.BufferedReader):
  """A file that refuses to be read on after LONGEST seconds of the thread's computing.

  Pillow reads in pieces, also in those of its decoders that are slow, as for plain-text PNM and run lengths of BMP.
  """

  def __init__(self, path: Path):
    super().__init__(io.FileIO(path))
    self._end = time.thread_time() + LONGEST

  def read(self, size: int | None = -1, /) -> bytes:
    if time.thread_time() > self._end:
      raise _TooSlow
    return super().read(size)


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


def decode(path: str | os.PathLike, largest_side: int, colours: bool = True) -> Decoded:
  """Reads an image file; of an animation or a file with several pages, the first image, with a printed note.

  An image whose longer side exceeds `largest_side` pixels is averaged over blocks of pixels to at most that size. Grey
  images without an opacity channel keep 16 bits (depth maps), also where one grey value stands for transparency. Pillow
  reduces colours, and grey with an opacity channel, to 8 bits.

  Args:
    path: of the file.
    largest_side: pixels.
    colours: whether the values are colours, which an embedded colour profile converts to sRGB; False for the numbers of
      a map, which stay as in the file.

  Raises:
    PictureError: no such file, a folder, a pipe, an empty or damaged file, a format not in FORMATS, more than
      LARGEST_FILE, LARGEST_PICTURE or LONGEST.
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
      file = _TimedFile(path)
    except OSError as error:
      raise PictureError(f"{path} cannot be read: {error.strerror}") from error
    with file:
      return _decode(path, _open(path, file), largest_side, colours)


def _open(path: Path, file: _TimedFile) -> Image.Image:
  try:
    return Image.open(file, formats=_known())
  except _TooSlow as error:
    raise PictureError(_slow(path)) from error
  except UnidentifiedImageError as error:
    raise PictureError(
      f"{path} is no picture that can be read, or damaged at its beginning; {_formats()} can") from error
  except Image.DecompressionBombError as error:
    raise PictureError(f"{path} has too many pixels, at most {LARGEST_PICTURE} are read: make it smaller") from error
  except Exception as error:  # damaged headers raise OSError, ValueError, SyntaxError, struct.error, ...
    raise PictureError(_damaged(path, error)) from error


def _decode(path: Path, image: Image.Image, largest_side: int, colours: bool) -> Decoded:
  width, height = image.size
  # By the header, before `load` allocates any pixel.
  if width * height > LARGEST_PICTURE:
    raise PictureError(f"{path} has {width} x {height} pixels, more than the {LARGEST_PICTURE} that are read: make it "
                       f"smaller")
  try:
    # JPEGs of telephones hold previews as further images; these files are no animations.
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    conversion = find_conversion(path, image) if colours else None
    # Cameras store the sensor's rows and note the turn in EXIF.
    upright = ImageOps.exif_transpose(image)
    decoded = _arrays(upright, max(1, -(-max(width, height) // largest_side)), conversion)
  except _TooSlow as error:
    raise PictureError(_slow(path)) from error
  except Exception as error:  # decoders raise OSError, EOFError, SyntaxError, zlib.error, ...
    raise PictureError(_damaged(path, error)) from error
  if several:
    print(f"{path} holds several pictures; the first of them is used")
  return decoded


def _arrays(image: Image.Image, factor: int, conversion: Conversion | None) -> Decoded:
  """Returns the pixels of an image in any of Pillow's modes, averaged over blocks of factor x factor."""
  if image.mode in _DEEP or image.mode == "F":
    # Mode F holds numbers in [0, 1] already; all others have 16 bits.
    grey = np.asarray(image).astype(np.float32) / (1.0 if image.mode == "F" else 65535.0)
    if not 0.0 <= grey.min() <= grey.max() <= 1.0:  # TIFF files may hold any number, and NaN
      raise ValueError(f"its values lie in [{grey.min():g}, {grey.max():g}], not in [0, 1]")
    grey = grey if conversion is None else conversion.grey(grey)
    nothing = image.info.get("transparency")  # the one transparent value, PNG's tRNS
    known = np.ones_like(grey) if nothing is None else (np.asarray(image) != nothing).astype(np.float32)
    grey, known = (np.asarray(Image.fromarray(values).reduce(factor)) for values in (grey * known, known))
    return Decoded(np.repeat(grey[..., None], 3, axis=-1), known, nothing is not None)
  if image.has_transparency_data:
    # Blocks are averaged after premultiplication, so transparent pixels have no weight; 8 bits suffice for 8-bit files.
    straight = image.convert("RGBA")
    straight = straight if conversion is None else conversion.with_opacity(straight)
    premultiplied = straight.convert("RGBa") if factor > 1 else straight
    pixels = np.asarray(premultiplied.reduce(factor), np.float32) / 255.0
    opacity = pixels[..., 3]
    colours = pixels[..., :3] if factor > 1 else pixels[..., :3] * opacity[..., None]
    return Decoded(colours, opacity, True)
  reduced = (image.convert("RGB") if conversion is None else conversion.opaque(image)).reduce(factor)
  colours = np.asarray(reduced if conversion is None else conversion.to_rgb(reduced), np.float32) / 255.0
  return Decoded(colours, np.ones(colours.shape[:2], np.float32), False)


def _known() -> list[str]:
  """Returns the entries of FORMATS that this build of Pillow supports."""
  Image.init()
  return [name for name in FORMATS if name in Image.OPEN]


def _formats() -> str:
  *most, last = _known()
  return f"{', '.join(most)} or {last}"


def _slow(path: Path) -> str:
  return (f"{path} takes more than {LONGEST:g} s of computing to decode, as large plain-text PNM files do: save it as "
          "PNG or JPEG")


def _damaged(path: Path, error: Exception) -> str:
  reason = " ".join(str(error).split()) or type(error).__name__
  return f"{path} is damaged, cut off or of a kind that cannot be read ({reason}); save or download it again"
