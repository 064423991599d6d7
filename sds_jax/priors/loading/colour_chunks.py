"""Colour spaces that image files name without an ICC profile, as profiles that LittleCMS reads.

PNG names them in the chunks cICP, sRGB, gAMA and cHRM (W3C Portable Network Graphics, third edition, section 11.3.2),
AVIF in a box `colr` of the kind `nclx`. The numbers of cICP and nclx are those of ITU-T H.273.
"""
from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Chromaticities = tuple[float, ...]
"""x, y of the white point, of red, green and blue (CIE 1931)."""

_D65, _DCI = (0.3127, 0.329), (0.314, 0.351)
_SRGB = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB, 4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08), 5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07), 7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046), 11: (*_DCI, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06), 22: (*_D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077)}
"""ColourPrimaries of H.273, table 2 -> chromaticities."""

WHITE_NITS = 203.0
"""Luminance of white in pictures of high dynamic range (ITU-R BT.2408); brighter parts become white."""


def _srgb(v: np.ndarray) -> np.ndarray:
  return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _pq(v: np.ndarray) -> np.ndarray:
  """Returns luminance over white by the curve of SMPTE ST 2084."""
  p = v ** (32 / 2523)
  return (np.maximum(p - 3424 / 4096, 0.0) / (2413 / 128 - 2392 / 128 * p)) ** (16384 / 2610) * 10_000 / WHITE_NITS


def _hlg(v: np.ndarray) -> np.ndarray:
  """Returns luminance over white by the curve of ITU-R BT.2100, on a display of 1,000 nits (gamma 1.2)."""
  scene = np.where(v <= 0.5, v**2 / 3, (np.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12)
  return scene**1.2 * 1_000 / WHITE_NITS


_CURVES: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # Viewers show the curves of television (1, 6, 14, 15) as sRGB.
    **dict.fromkeys((1, 2, 6, 13, 14, 15), _srgb), 4: lambda v: v**2.2, 5: lambda v: v**2.8, 8: lambda v: v,
    16: _pq, 17: lambda v: v**2.6 * 52.37 / 48, 18: _hlg}
"""TransferCharacteristics of H.273, table 3 -> light of a value in [0, 1]; 1 is white."""

_NEAR_SRGB = 0.05
"""Relative difference from 1 / 2.2 up to which a gAMA stands for the curve of sRGB, as in libpng."""


@dataclasses.dataclass(frozen=True)
class ColourSpace:
  """A colour space: its primaries, and the light of a value.

  Attributes:
    primaries: chromaticities.
    curve: values in [0, 1] -> linear light.
    above: whether the file stands before an ICC profile in the same file.
  """
  primaries: Chromaticities
  curve: Callable[[np.ndarray], np.ndarray]
  above: bool = False

  def profile(self, grey: bool) -> bytes:
    """Returns an ICC profile of colours, or of grey.

    Raises:
      ValueError: the chromaticities span no colour space.
    """
    return _profile(self, grey)


def find_colour_space(path: Path, kind: str | None) -> ColourSpace | None:
  """Returns the colour space that a PNG or AVIF file names besides ICC profiles; None where it names none, or sRGB.

  Args:
    path: of the file.
    kind: Pillow's name of the format.

  Raises:
    ValueError: the file names a colour space that cannot be used.
    OSError: the file cannot be read.
  """
  if kind not in ("PNG", "AVIF"):
    return None
  with open(path, "rb") as file:
    return _of_png(_png_chunks(file)) if kind == "PNG" else _of_avif(_nclx(file))


def _png_chunks(file: BinaryIO) -> dict[bytes, bytes]:
  """Returns the chunks about colours; they stand before the pixels."""
  chunks: dict[bytes, bytes] = {}
  file.seek(8)
  while len(head := file.read(8)) == 8:
    length, name = struct.unpack(">I4s", head)
    if name in (b"IDAT", b"IEND"):
      break
    if name in (b"cICP", b"sRGB", b"gAMA", b"cHRM") and length <= 32:
      chunks.setdefault(name, file.read(length))
      length = 0
    file.seek(length + 4, 1)  # the checksum
  return chunks


def _of_png(chunks: dict[bytes, bytes]) -> ColourSpace | None:
  if len(code := chunks.get(b"cICP", b"")) == 4:
    primaries, transfer, matrix, full = code
    if matrix != 0 or full != 1:
      raise ValueError(f"its chunk cICP has the matrix {matrix} and the range {full}; read are 0 and 1, full RGB")
    return _by_numbers(primaries, transfer, above=True)
  if b"sRGB" in chunks:
    return None
  gamma, points = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
  exponent = struct.unpack(">I", gamma)[0] / 1e5 if len(gamma) == 4 else 0.0
  primaries = tuple(n / 1e5 for n in struct.unpack(">8I", points)) if len(points) == 32 else _SRGB
  # A gAMA of 0 says nothing.
  plain = exponent == 0.0 or abs(exponent * 2.2 - 1.0) <= _NEAR_SRGB
  if plain and np.abs(np.subtract(primaries, _SRGB)).max() < 1e-3:
    return None
  return ColourSpace(primaries, _srgb if plain else lambda v: v ** (1.0 / exponent))


def _nclx(file: BinaryIO) -> tuple[int, int] | None:
  """Returns (primaries, transfer) of an AVIF file, or None."""
  places = [b"meta", b"iprp", b"ipco", b"colr"]
  end = file.seek(0, 2)
  file.seek(0)
  while places and file.tell() + 8 <= end:
    start = file.tell()
    size, name = struct.unpack(">I4s", file.read(8))
    if size == 1:
      size = int.from_bytes(file.read(8), "big")
    after = end if size == 0 else start + size
    if after <= start or after > end:
      return None
    if name != places[0]:
      file.seek(after)
    elif name == b"colr":
      content = file.read(8)
      if content[:4] == b"nclx" and len(content) == 8:
        return struct.unpack(">HH", content[4:])
      file.seek(after)  # an ICC profile; nclx may follow
    else:
      end = after
      file.seek(4 if name == b"meta" else 0, 1)  # version and flags
      places.pop(0)
  return None


def _of_avif(numbers: tuple[int, int] | None) -> ColourSpace | None:
  return None if numbers is None else _by_numbers(*numbers, above=False)


def _by_numbers(primaries: int, transfer: int, above: bool) -> ColourSpace | None:
  # 2 is "unspecified", for which viewers take sRGB.
  if primaries not in (2, *_PRIMARIES) or transfer not in _CURVES:
    raise ValueError(f"its colour primaries {primaries} or its transfer curve {transfer} (ITU-T H.273) are unknown")
  space = ColourSpace(_PRIMARIES.get(primaries, _SRGB), _CURVES[transfer], above)
  return None if not above and space.primaries == _SRGB and space.curve is _srgb else space


_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_LEVELS = 4096


def _profile(space: ColourSpace, grey: bool) -> bytes:
  """Returns a profile of primaries and curve, as ICC.1:2001-04 has it; its white is D50, by Bradford's adaptation."""
  points = np.array(space.primaries).reshape(4, 2)
  if not (np.isfinite(points).all() and (points[:, 1] > 1e-3).all()):
    raise ValueError("its chromaticities are no colours")
  xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1.0 - points.sum(1)) / points[:, 1]])
  white, corners = xyz[:, 0], xyz[:, 1:]
  if abs(np.linalg.det(corners)) < 1e-3:
    raise ValueError("its chromaticities span no colours")
  cones = _BRADFORD @ white
  adapted = np.linalg.solve(_BRADFORD, np.diag(_BRADFORD @ _D50 / cones) @ _BRADFORD)
  matrix = adapted @ corners * np.linalg.solve(corners, white)
  light = np.clip(space.curve(np.linspace(0.0, 1.0, _LEVELS)), 0.0, 1.0)
  curve = b"curv\0\0\0\0" + struct.pack(f">I{_LEVELS}H", _LEVELS, *np.round(light * 65535).astype(int))
  text = b"text\0\0\0\0-\0"
  tags: dict[bytes, Any] = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"-\0" + bytes(78), b"cprt": text,
                            b"wtpt": _xyz(_D50)}
  if grey:
    tags[b"kTRC"] = curve
  else:
    tags |= {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), matrix.T)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
  return _with_header(tags, b"GRAY" if grey else b"RGB ")


def _with_header(tags: dict[bytes, bytes], space: bytes) -> bytes:
  place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
  for name, content in tags.items():
    table += name + struct.pack(">II", place + len(body), len(content))
    body += content + bytes(-len(content) % 4)
  head = (struct.pack(">I4x", place + len(body)) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " +
          struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(_D50))
  return head + bytes(128 - len(head)) + table + body


def _xyz(values: np.ndarray) -> bytes:
  return b"XYZ \0\0\0\0" + _fixed(values)


def _fixed(values: np.ndarray) -> bytes:
  return struct.pack(">3i", *(round(float(value) * 65536) for value in values))
