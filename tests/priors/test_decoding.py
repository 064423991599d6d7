"""Image files of all formats decode alike; other files end in a one-line error."""
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from sds_jax.priors.loading.decoding import PictureError, decode


def png(width, height, depth, kind, rows):
  """A PNG file by hand: `kind` 0 grey, 2 RGB, 4 grey with opacity, 6 RGB with opacity; `rows` big-endian samples."""
  def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
  header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def scene():
  """RGB [12, 16, 3] of four flat quarters, 0..255, none of which would survive a wrong turn."""
  rgb = np.zeros((12, 16, 3), np.uint8)
  rgb[:6, :8], rgb[:6, 8:], rgb[6:, :8], rgb[6:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
  return rgb


@pytest.mark.parametrize("ending, options, off", [
  ("png", {}, 0), ("jpg", dict(quality=95, subsampling=0), 6), ("webp", dict(lossless=True), 0), ("bmp", {}, 0),
  ("tiff", {}, 0), ("ppm", {}, 0), ("gif", {}, 0)])
def test_formats(tmp_path, scene, ending, options, off):
  Image.fromarray(scene).save(tmp_path / f"x.{ending}", **options)
  decoded = decode(tmp_path / f"x.{ending}", 64)
  assert np.abs(decoded.premultiplied * 255 - scene).max() <= off + 1e-3 and (decoded.opacity == 1.0).all()
  assert decoded.premultiplied.dtype == np.float32 and not decoded.has_opacity


def test_the_ending_plays_no_part(tmp_path, scene):
  Image.fromarray(scene).save(tmp_path / "x.jpg", format="PNG")
  np.testing.assert_allclose(decode(tmp_path / "x.jpg", 64).premultiplied * 255, scene, atol=1e-3)


def test_modes(tmp_path, scene):
  """Grey, with and without opacity, palettes with a transparent colour, a colour that counts as transparent, CMYK."""
  grey = np.arange(192, dtype=np.uint8).reshape(12, 16)
  opacity = np.linspace(0, 255, 192).astype(np.uint8).reshape(12, 16)
  path = tmp_path / "x.png"
  Image.fromarray(grey).save(path)
  assert np.allclose(decode(path, 64).premultiplied * 255, grey[..., None], atol=1e-3)
  Image.fromarray(np.dstack([grey, opacity])).save(path)
  decoded = decode(path, 64)
  assert np.allclose(decoded.opacity * 255, opacity, atol=1e-3) and decoded.has_opacity
  assert np.allclose(decoded.premultiplied, (grey / 255 * (opacity / 255))[..., None], atol=1e-5)
  paletted = Image.fromarray(scene).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
  paletted.save(path, transparency=paletted.getpixel((0, 0)))
  decoded = decode(path, 64)
  assert not decoded.opacity[:6, :8].any() and (decoded.opacity[6:] == 1).all()
  assert not decoded.premultiplied[:6, :8].any()
  Image.fromarray(scene).save(path, transparency=(0, 0, 255))
  assert np.array_equal(decode(path, 64).opacity == 0, (scene == (0, 0, 255)).all(-1))
  Image.fromarray(scene).convert("CMYK").save(tmp_path / "x.jpg", quality=95, subsampling=0)
  assert np.abs(decode(tmp_path / "x.jpg", 64).premultiplied * 255 - scene).max() < 12
  Image.fromarray(grey > 90).save(path)
  assert np.array_equal(decode(path, 64).premultiplied[..., 1] == 1.0, grey > 90)


def test_sixteen_bits(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / "x.png"
  for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
    values = rng.integers(0, 65536, (5, 7, channels)).astype(">u2")
    path.write_bytes(png(7, 5, 16, kind, values))
    decoded = decode(path, 64)
    opacity = values[..., -1:] / 65535 if kind > 2 else np.ones((5, 7, 1))
    expected = (values[..., :3] if kind in (2, 6) else values[..., :1]) / 65535 * opacity
    tolerance = 1e-6 if kind == 0 else 3 / 255  # Pillow keeps 8 bits of colours
    assert np.abs(decoded.premultiplied - expected).max() < tolerance, kind
    assert np.abs(decoded.opacity - opacity[..., 0]).max() < tolerance


def test_sixteen_bits_of_which_one_value_is_transparent(tmp_path):
  values = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.uint16)
  values[:3, :5] = 777
  Image.fromarray(values).save(tmp_path / "x.png", transparency=777)
  decoded = decode(tmp_path / "x.png", 64)
  np.testing.assert_array_equal(decoded.opacity, values != 777)
  np.testing.assert_allclose(decoded.premultiplied[..., 1], np.where(values == 777, 0, values / 65535), atol=1e-6)
  assert decoded.has_opacity
  half = decode(tmp_path / "x.png", 4)  # averaged over blocks of two by two pixels
  np.testing.assert_allclose(half.opacity, (values != 777).reshape(3, 2, 4, 2).mean((1, 3)), atol=1e-6)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch, scene):
  Image.fromarray(scene).save(tmp_path / "x.png")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert np.array_equal(decode("~/x.png", 64).premultiplied, decode(tmp_path / "x.png", 64).premultiplied)


def test_floats_have_to_be_within_0_and_1(tmp_path):
  values = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
  Image.fromarray(values).save(tmp_path / "x.tiff")
  np.testing.assert_array_equal(decode(tmp_path / "x.tiff", 64).premultiplied[..., 0], values)
  for wrong in (values * 2, values * np.float32(np.nan)):
    Image.fromarray(wrong).save(tmp_path / "x.tiff")
    with pytest.raises(PictureError, match=r"its values lie in \[(0, 2|nan, nan)\]"):
      decode(tmp_path / "x.tiff", 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, scene, orientation):
  """A file whose EXIF tag undoes how its pixels were turned shows the scene."""
  laid = {1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.swapaxes(0, 1),
          6: np.rot90(scene), 7: np.rot90(scene, 2).swapaxes(0, 1), 8: np.rot90(scene, -1)}[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(np.ascontiguousarray(laid)).save(tmp_path / "x.png", exif=exif)
  np.testing.assert_allclose(decode(tmp_path / "x.png", 64).premultiplied * 255, scene, atol=1e-3)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_images(tmp_path, capsys, scene, ending):
  frames = [Image.fromarray(scene), Image.fromarray(scene[::-1].copy())]
  extra = dict(lossless=True) if ending == "webp" else {}
  frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **extra)
  np.testing.assert_allclose(decode(tmp_path / f"x.{ending}", 64).premultiplied * 255, scene, atol=1e-3)
  assert "the first of them is used" in capsys.readouterr().out


def test_large_images_are_averaged_with_their_opacity(tmp_path):
  rng = np.random.default_rng(0)
  rgba = rng.integers(0, 256, (90, 60, 4)).astype(np.uint8)
  Image.fromarray(rgba).save(tmp_path / "x.png")
  decoded = decode(tmp_path / "x.png", 30)
  assert decoded.opacity.shape == (30, 20)
  values = rgba / 255
  expected = np.dstack([values[..., :3] * values[..., 3:], values[..., 3]]).reshape(30, 3, 20, 3, 4).mean((1, 3))
  assert np.abs(np.dstack([decoded.premultiplied, decoded.opacity]) - expected).max() < 1.6 / 255


def refused(path, match):
  with pytest.raises(PictureError, match=match) as error:
    decode(path, 64)
  text = str(error.value)
  assert str(path) in text and "\n" not in text and len(text) < 400


def test_files_that_are_no_images(tmp_path, scene):
  refused(tmp_path / "none.png", "does not exist")
  refused(tmp_path, "no regular file but a folder")
  os.mkfifo(tmp_path / "pipe.png")
  refused(tmp_path / "pipe.png", "a pipe")
  for name, content, match in (
      ("empty.png", b"", "is empty"), ("text.png", b"hello " * 50, "no picture that can be read.*; PNG, JPEG"),
      ("page.jpg", b"<!DOCTYPE html><html>", "HTML page"), ("vector.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture"),
      ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture")):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
def test_cut_off_files(tmp_path, ending):
  """Cut at many places: a one-line error or, past the last pixel, the image; never anything else."""
  path = tmp_path / f"x.{ending}"
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(path)
  whole, outcomes = path.read_bytes(), []
  for length in range(1, len(whole), max(1, len(whole) // 25)):
    path.write_bytes(whole[:length])
    try:
      outcomes.append(decode(path, 64).opacity.shape == (24, 24))
    except PictureError as error:
      outcomes.append("\n" not in str(error))
  assert all(outcomes)
  path.write_bytes(whole[:len(whole) // 2])
  refused(path, "damaged")


def test_bombs(tmp_path):
  """Neither a header that promises too much nor Pillow's limit, whatever it is, costs memory or prints warnings."""
  before = Image.MAX_IMAGE_PIXELS
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for width, height in ((100_000, 100_000), (12_000, 9_000), (2**31 - 1, 2**31 - 1)):
      (tmp_path / "x.png").write_bytes(png(width, height, 8, 2, []))
      refused(tmp_path / "x.png", "pixels")
  assert Image.MAX_IMAGE_PIXELS == before
  with open(tmp_path / "x.png", "wb") as file:
    file.truncate(2**28 + 1)  # a sparse file
  refused(tmp_path / "x.png", "more than the 268435456")
