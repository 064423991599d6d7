"""Colours of files with a profile, against the colours that the profile was made from."""
import io
import struct
import time

import numpy as np
from PIL import Image, ImageCms
import pytest

from sds_jax.io.photos import Frame, read_map, read_photo
from sds_jax.priors.loading import decoding
from sds_jax.priors.loading.decoding import PictureError, decode
from sds_jax.priors.sample_views import read_picture

COLOURS = np.uint8([(220, 30, 30), (30, 200, 60), (230, 120, 30), (20, 40, 200), (128, 128, 128), (250, 250, 245)])
D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {  # XYZ of red, green and blue, adapted to D50, and gamma; None: sRGB's curve
  "Display P3": (((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), None),
  "Adobe RGB": (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.19921875),
  "ProPhoto": (((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)), 1.8),
  "linear": (((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)), 1.0)}


def fixed(values):
  return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(space, tags):
  text = "p".encode("utf-16-be") + b"\0\0"
  name = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 2, 28) + text
  tags = {b"desc": name, b"cprt": name, b"wtpt": b"XYZ \0\0\0\0" + fixed(D50), **tags}
  at, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
  for tag, body in tags.items():
    table += tag + struct.pack(">II", at + len(data), len(body))
    data += body
  head = struct.pack(">I", at + len(data)) + b"\0\0\0\0" + struct.pack(">I", 0x04200000) + b"mntr" + space + b"XYZ "
  head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + fixed(D50) + b"\0" * 48
  return head + table + data


def curve(gamma):
  if gamma is None:
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed((2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
  return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def rgb_profile(name):
  primaries, gamma = PRIMARIES[name]
  tags = {letter + b"TRC": curve(gamma) for letter in (b"r", b"g", b"b")}
  for letter, xyz in zip((b"r", b"g", b"b"), primaries):
    tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(xyz)
  return icc(b"RGB ", tags)


GREY_PROFILE = icc(b"GRAY", {b"kTRC": curve(1.8)})


def scene():
  """The colours [24, 24 n, 3] side by side, as sRGB."""
  return np.repeat(np.repeat(COLOURS[None], 24, 0), 24, 1)


def in_profile(image, profile, mode="RGB"):
  """An sRGB image in the numbers of a profile."""
  return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                                   outputMode=mode)


def worst(path, expected=None, **options):
  got = decode(path, 4096, **options).premultiplied * 255
  return np.abs(got[12, 12::24] - (COLOURS if expected is None else expected)).max()


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
def test_wide_colours(tmp_path, name, ending):
  profile, path = rgb_profile(name), tmp_path / f"x.{ending}"
  wide = in_profile(Image.fromarray(scene()), profile)
  options = dict(jpg=dict(quality=98, subsampling=0), webp=dict(lossless=True)).get(ending, {})
  wide.save(path, icc_profile=profile, **options)
  # Dark linear values and ProPhoto's have few levels of 8 bits.
  limit = dict(linear=9, ProPhoto=7).get(name, 3) + (0 if ending != "jpg" else 40 if name == "linear" else 8)
  assert worst(path) <= limit
  assert worst(path, colours=False) > (0 if name == "linear" else 15)


def test_with_opacity_palette_and_blocks(tmp_path):
  profile = rgb_profile("Display P3")
  wide = in_profile(Image.fromarray(scene()), profile)
  wide.putalpha(200)
  wide.save(tmp_path / "a.png", icc_profile=profile)
  decoded = decode(tmp_path / "a.png", 4096)
  np.testing.assert_allclose(decoded.opacity, 200 / 255, atol=1e-6)
  assert np.abs(decoded.premultiplied[12, 12::24] * 255 - COLOURS * (200 / 255)).max() <= 3
  small = decode(tmp_path / "a.png", 36)  # blocks of four by four
  assert np.abs(small.premultiplied[3, 3::6] * 255 - COLOURS * (200 / 255)).max() <= 4
  wide.convert("RGB").quantize(6).save(tmp_path / "p.png", icc_profile=profile)
  assert worst(tmp_path / "p.png") <= 4


def test_grey_of_8_and_16_bits(tmp_path):
  values = np.linspace(0.02, 1, 64)
  expected = np.where(values**1.8 <= 0.0031308, 12.92 * values**1.8, 1.055 * values ** (1.8 / 2.4) - 0.055)
  row = np.repeat(values[None], 8, 0)
  Image.fromarray(np.rint(row * 255).astype(np.uint8)).save(tmp_path / "8.png", icc_profile=GREY_PROFILE)
  Image.fromarray(np.rint(row * 65535).astype(np.uint16)).save(tmp_path / "16.png", icc_profile=GREY_PROFILE)
  for name in ("8.png", "16.png"):
    got = decode(tmp_path / name, 64).premultiplied[4]
    np.testing.assert_allclose(got, np.repeat(expected[:, None], 3, 1), atol=0.01)
  depth = read_map(tmp_path / "16.png", Frame(), 64, 1)  # the numbers of a map are no colours
  np.testing.assert_allclose(depth.values[32, :, 0], values, atol=1e-3)
  rgb = rgb_profile("Display P3")  # neutral colours stay, so that a grey file with a colour profile is legal
  Image.fromarray(np.rint(row * 255).astype(np.uint8)).save(tmp_path / "9.png", icc_profile=rgb)
  np.testing.assert_allclose(decode(tmp_path / "9.png", 64).premultiplied[4, :, 1], values, atol=0.01)


def test_srgb_is_left_alone(tmp_path, capsys):
  rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  Image.fromarray(rgb).save(tmp_path / "x.png", icc_profile=profile)
  np.testing.assert_allclose(decode(tmp_path / "x.png", 64).premultiplied * 255, rgb, atol=1e-3)
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("profile, mode", [
  (b"", "RGB"), (b"no profile", "RGB"), (rgb_profile("Adobe RGB")[:300], "RGB"), (GREY_PROFILE, "RGB"),
  (rgb_profile("Adobe RGB"), "CMYK"), (b"\0" * 2**18, "RGB"), (b"\xff" * 5000, "RGB")])
def test_broken_profiles_are_told(tmp_path, capsys, profile, mode):
  """The colours count as sRGB then, in the file's own order of channels."""
  path = tmp_path / "x.tiff"
  Image.fromarray(scene()).convert(mode).save(path, icc_profile=profile)
  assert worst(path) <= (0.01 if mode == "RGB" else 12)
  said = capsys.readouterr().out
  assert ("its colour profile cannot be used" in said and str(path) in said and said.count("\n") == 1) == bool(profile)


def test_adobe_rgb_by_exif(tmp_path):
  """Cameras mark Adobe RGB by the interoperability index R03, without a profile."""
  exif = Image.Exif()
  exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
  wide = in_profile(Image.fromarray(scene()), rgb_profile("Adobe RGB"))
  wide.save(tmp_path / "x.jpg", exif=exif, quality=98, subsampling=0)
  assert worst(tmp_path / "x.jpg") <= 8


def test_photos_and_pictures_are_converted(tmp_path):
  profile, path = rgb_profile("Display P3"), tmp_path / "x.png"
  picture = np.full((64, 64, 3), 255, np.uint8)
  picture[16:48, 16:48] = COLOURS[0]
  in_profile(Image.fromarray(picture), profile).save(path, icc_profile=profile)
  assert np.abs(read_photo(path, 64).rgb[32, 32] * 255 - COLOURS[0]).max() <= 3
  assert np.abs(np.asarray(read_picture(path))[32, 32] * 255 - COLOURS[0]).max() <= 3


@pytest.mark.parametrize("kind", ["P3", "P2", "P1", "RLE"])
def test_slow_formats_end_in_time(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(decoding, "LONGEST", 0.2)
  path, side = tmp_path / "x.ppm", 3000
  if kind == "RLE":  # runs of one pixel
    data = b"\x01\x07" * (side * side)
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(1024) + data)
  else:
    path.write_bytes(f"{kind} {side} {side} {'' if kind == 'P1' else 255}\n".encode() + b"1 " * (side * side * 3))
  start = time.thread_time()
  with pytest.raises(PictureError, match=r"x.ppm takes more than 0.2 s of computing to decode.*save it as PNG"):
    decode(path, 64)
  assert time.thread_time() - start < 5


def test_small_files_of_slow_formats_are_read(tmp_path):
  (tmp_path / "x.ppm").write_bytes(b"P3 2 1 255\n255 0 0 0 255 0")
  np.testing.assert_allclose(decode(tmp_path / "x.ppm", 64).premultiplied, [[[1, 0, 0], [0, 1, 0]]])
