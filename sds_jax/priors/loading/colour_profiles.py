"""Converts the colours of an image file to sRGB, by the ICC profile or the colour space that the file names.

Telephones and Macs write Display P3, cameras Adobe RGB, raw converters ProPhoto, scanners grey profiles, print shops
CMYK profiles, renderers linear PNG files. LittleCMS, which comes with Pillow, computes the conversion.
"""
from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter

from sds_jax.priors.loading.colour_chunks import find_colour_space

LARGEST_PROFILE = 2**24
"""Upper limit of the bytes of a profile; published ones have up to three million."""
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Colour space of a profile -> Pillow's mode."""
_NEAR = 2
"""Largest difference in levels of 255 at which a profile counts as sRGB, so that no value is rounded twice."""
_EXIF_INTEROPERABILITY, _ADOBE_RGB = 0xA005, "R03"
"""The EXIF folder, and its entry 1, by which cameras mark Adobe RGB in files without a profile."""


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A conversion to sRGB.

  Attributes:
    mode: Pillow's mode of the images that are converted: "RGB", "L", "CMYK" or "LAB".
    transform: from that mode to RGB.
  """
  mode: str
  transform: ImageCms.ImageCmsTransform | ImageFilter.Color3DLUT

  def to_rgb(self, image: Image.Image) -> Image.Image:
    """Returns an image of the mode `mode` as RGB."""
    if isinstance(self.transform, ImageFilter.Color3DLUT):
      return image.filter(self.transform)
    return ImageCms.applyTransform(image, self.transform)

  def opaque(self, image: Image.Image) -> Image.Image:
    """Returns the colours of an image of any mode, in the mode `mode`."""
    return image if image.mode == self.mode else image.convert(self.mode)

  def with_opacity(self, image: Image.Image) -> Image.Image:
    """Returns an RGBA image converted; its opacity stays."""
    colours = image.getchannel("R") if self.mode == "L" else image.convert("RGB")
    converted = self.to_rgb(self.opaque(colours))
    # A profile describes colours, and opacity is none.
    converted.putalpha(image.getchannel("A"))
    return converted

  def grey(self, values: np.ndarray) -> np.ndarray:
    """Returns grey values in [0, 1], of more than 8 bits, converted through the curve of 256 levels."""
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    # LittleCMS converts 8 bits here; between its levels the curve is interpolated.
    curve = np.asarray(self.to_rgb(self.opaque(ramp)), np.float32)[0, :, 1] / 255.0
    return np.interp(values * 255.0, np.arange(256), curve).astype(np.float32)


def find_conversion(path: Path, image: Image.Image) -> Conversion | None:
  """Returns the conversion of a file's colours to sRGB; None where they are sRGB, or where the file does not say.

  Prints a note where the file's profile cannot be used; the colours then count as sRGB.

  Args:
    path: of the file, for the note.
    image: as opened, in any mode.
  """
  profile = image.info.get("icc_profile")
  try:
    if named := _named_profile(path, image):
      conversion = _from_profile(named, image)
    elif profile:
      conversion = _from_profile(profile, image)
    elif image.mode == "LAB":
      conversion = Conversion("LAB", _transform(ImageCms.createProfile("LAB"), "LAB"))
    elif _is_adobe_rgb(image):
      conversion = Conversion("RGB", _adobe_rgb())
    else:
      return None
    return None if _is_srgb(conversion) else conversion
  except Exception as error:  # LittleCMS, Pillow and damaged tags raise errors of many kinds
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    print(f"{path}: its colour profile cannot be used ({reason}); its colours are taken as sRGB")
    return None


def _named_profile(path: Path, image: Image.Image) -> bytes | None:
  """Returns a profile of the colour space that chunks of the file name; None where an ICC profile goes before it."""
  profile = image.info.get("icc_profile")
  try:
    space = find_colour_space(path, image.format)
    return space.profile(image.mode in _GREY) if space and (space.above or not profile) else None
  except ValueError:
    # Readers that do not know the space of cICP take the profile.
    if profile:
      return None
    raise


def _from_profile(content: bytes, image: Image.Image) -> Conversion:
  if not isinstance(content, bytes) or len(content) > LARGEST_PROFILE:
    raise ValueError(f"it is larger than {LARGEST_PROFILE} bytes")
  profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
  space = profile.profile.xcolor_space.strip()
  kinds = {"CMYK": ("CMYK",), "LAB": ("LAB",)}.get(image.mode, ("RGB", "GRAY") if image.mode in _GREY else ("RGB",))
  if space not in kinds:
    raise ValueError(f"it is for {space or 'unknown'} colours, the picture has the mode {image.mode}")
  return Conversion(_MODES[space], _transform(profile, _MODES[space]))


_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def _transform(profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
  """Returns the transform from a profile to sRGB, with the intent that the profile names."""
  try:
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
  except (ImageCms.PyCMSError, ValueError):
    # A damaged or unknown intent is no reason to lose the profile.
    intent = ImageCms.Intent.PERCEPTUAL
  return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent)


def _is_srgb(conversion: Conversion) -> bool:
  """Returns whether a conversion changes nothing that can be seen."""
  if conversion.mode in ("CMYK", "LAB"):
    return False
  # 255 = 17 * 15: the grid holds both black and white.
  levels = np.arange(0, 256, 15, dtype=np.uint8)
  if conversion.mode == "L":
    before = np.repeat(levels[:, None, None], 3, -1)
    image = Image.fromarray(levels[:, None])
  else:
    before = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(len(levels), -1, 3)
    image = Image.fromarray(np.ascontiguousarray(before))
  after = np.asarray(conversion.to_rgb(image), np.int16)
  return int(np.abs(after - before.astype(np.int16)).max()) <= _NEAR


def _is_adobe_rgb(image: Image.Image) -> bool:
  if image.mode != "RGB" or image.format not in ("JPEG", "MPO", "TIFF"):
    return False
  try:
    mark = image.getexif().get_ifd(_EXIF_INTEROPERABILITY).get(1, "")
  except Exception:  # damaged EXIF raises errors of many kinds; the file then does not say that it is Adobe RGB
    return False
  return str(mark, "ascii", "replace").strip("\0") == _ADOBE_RGB if isinstance(mark, bytes) else mark == _ADOBE_RGB


_ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
"""Linear Adobe RGB (1998) -> linear sRGB; both have the white point D65."""


def _adobe_rgb() -> ImageFilter.Color3DLUT:
  """Returns the table from Adobe RGB (1998) to sRGB."""
  def convert(red: float, green: float, blue: float) -> tuple[float, ...]:
    # The gamma of Adobe RGB (1998) is 2 + 51/256. Colours outside of sRGB are clipped.
    linear = np.clip(_ADOBE_TO_SRGB @ (np.array([red, green, blue]) ** 2.19921875), 0.0, 1.0)
    # The curve of sRGB (IEC 61966-2-1).
    return tuple(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))

  return ImageFilter.Color3DLUT.generate(17, convert)
