"""Files in place of a photo that are damaged, of another kind, or legal but unusual, for the fuzz drill."""
from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24

Bytes = Callable[[random.Random], bytes]
"""(source of randomness) -> content of a file."""


def write(path: Path, rng: random.Random) -> None:
  """Writes a hostile file at `path`, or a folder, a pipe or a link."""
  if rng.random() < 0.08:
    rng.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nothing"),
                lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/zero")])()
    return
  content = rng.choice(_CONTENTS)(rng)
  kind = rng.random()
  if kind < 0.2:  # cut off
    content = content[:rng.randrange(len(content) + 1)]
  elif kind < 0.4:  # a few wrong bytes
    spoilt = bytearray(content)
    for _ in range(rng.randint(1, 8)):
      if spoilt:
        spoilt[rng.randrange(min(len(spoilt), rng.choice([64, 10**9])))] = rng.randrange(256)
    content = bytes(spoilt)
  path.write_bytes(content)


def _object(mode: str = "RGBA") -> Image.Image:
  """Returns a red disc, transparent around it where the mode has an opacity, and white otherwise."""
  y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
  inside = (x**2 + y**2 < (SIDE / 3) ** 2)[..., None]
  red = np.where(inside, np.uint8([200, 30, 30, 255]), np.uint8([255, 255, 255, 0])).astype(np.uint8)
  image = Image.fromarray(red)
  return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def _saved(kind: str, mode: str = "RGBA", **options: object) -> Bytes:
  def content(rng: random.Random) -> bytes:
    file = io.BytesIO()
    _object(mode).save(file, kind, **options)
    return file.getvalue()

  return content


def _array(values: np.ndarray, kind: str = "PNG") -> Bytes:
  def content(rng: random.Random) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()

  return content


def _png_with(name: bytes, *choices: bytes) -> Bytes:
  """Returns a PNG with one more chunk, of one of the contents."""
  def content(rng: random.Random) -> bytes:
    plain, data = _saved("PNG", "RGB")(rng), rng.choice(choices)
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return plain[:33] + chunk + plain[33:]

  return content


def _png_of_size(width: int, height: int) -> Bytes:
  """Returns a PNG whose header has another size than its pixels."""
  def content(rng: random.Random) -> bytes:
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)
    return _saved("PNG")(rng)[:12] + header + struct.pack(">I", zlib.crc32(header)) + _saved("PNG")(rng)[33:]

  return content


def _with_exif(entry: int, value: object) -> Bytes:
  def content(rng: random.Random) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[entry] = value
    _object("RGB").save(file, "JPEG", exif=exif)
    return file.getvalue()

  return content


def _animated(kind: str) -> Bytes:
  def content(rng: random.Random) -> bytes:
    file = io.BytesIO()
    _object().save(file, kind, save_all=True, append_images=[_object().rotate(90), _object()])
    return file.getvalue()

  return content


_FIELDS = np.random.default_rng(0)
_CONTENTS: list[Bytes] = [
    *(_saved("PNG", mode) for mode in ("RGBA", "RGB", "L", "LA", "P", "1", "I;16")),
    *(_saved("JPEG", mode) for mode in ("RGB", "L", "CMYK")), *(_saved("TIFF", mode) for mode in ("RGBA", "F")),
    _saved("WEBP"), _saved("BMP", "RGB"), _saved("GIF", "P"), _saved("PPM", "RGB"), _saved("ICO"), _saved("TGA"),
    _animated("GIF"), _animated("PNG"), _animated("WEBP"), _animated("TIFF"),
    *(_with_exif(0x0112, turn) for turn in (0, 3, 6, 9, 65535)),
    _saved("PNG", "RGB", icc_profile=b""), _saved("PNG", "RGB", icc_profile=b"x" * 200),
    _saved("JPEG", "RGB", icc_profile=b"\0" * 128), _saved("PNG", "P", transparency=0),
    _png_with(b"gAMA", *(struct.pack(">I", value) for value in (0, 1, 45455, 100_000, 2**32 - 1))),
    _png_with(b"cHRM", bytes(32), b"\xff" * 32, struct.pack(">8I", 31270, 32900, *[30000] * 6)),
    _png_with(b"cICP", bytes([12, 13, 0, 1]), bytes([255] * 4), bytes([9, 16, 0, 1]), bytes([1, 1, 1, 0])),
    _png_with(b"tRNS", b"", b"\0" * 6), _png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))),
    _png_of_size(0, 0), _png_of_size(2**31 - 1, 2**31 - 1), _png_of_size(60_000, 60_000), _png_of_size(SIDE, 10**6),
    _array(np.full((8, 8), np.nan, np.float32), "TIFF"), _array(np.full((8, 8), 1e30, np.float32), "TIFF"),
    _array(np.zeros((1, 1, 3), np.uint8)), _array(np.zeros((1, 3000, 3), np.uint8)),
    _array(np.zeros((SIDE, SIDE, 4), np.uint8)), _array(np.full((SIDE, SIDE, 3), 255, np.uint8)),
    _array(_FIELDS.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)),
    _array(_FIELDS.integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)),
    *((lambda rng, content=content: content) for content in (
        b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"P3\n100000 100000\n255\n" + b"1 " * 1000, b"P6\n-1 -1\n255\n",
        b"P1\n8 8\n" + b"2" * 64, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.4",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"BM" + b"\xff" * 60,
        b"II*\0\xff\xff\xff\xff"))]
"""Contents; some are legal photos."""
