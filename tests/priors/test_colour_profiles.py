"""Colours of files with a profile, against the colours that the profile was made from."""
import io
import struct
import time
import zlib

import numpy as np
from PIL import Image, ImageCms, features
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


def with_chunks(path, **chunks):
  """Adds chunks behind the first one of a PNG file."""
  data, added = path.read_bytes(), b""
  for name, content in chunks.items():
    added += struct.pack(">I", len(content)) + name.encode() + content
    added += struct.pack(">I", zlib.crc32(name.encode() + content))
  path.write_bytes(data[:33] + added + data[33:])


P3_POINTS = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_POINTS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
GAMMA = {gamma: struct.pack(">I", round(gamma * 1e5)) for gamma in (1.0, 1 / 1.8, 1 / 2.19921875, 0.45455, 0.0)}


@pytest.mark.parametrize("name, chunks", [
  ("Display P3", dict(cICP=bytes([12, 13, 0, 1]))), ("Display P3", dict(cHRM=P3_POINTS)),
  ("Display P3", dict(cHRM=P3_POINTS, gAMA=GAMMA[0.45455])), ("Display P3", dict(cHRM=P3_POINTS, gAMA=GAMMA[0.0])),
  ("Display P3", dict(cICP=bytes([12, 1, 0, 1]), sRGB=b"\0")), ("linear", dict(gAMA=GAMMA[1.0])),
  ("linear", dict(cHRM=SRGB_POINTS, gAMA=GAMMA[1.0])), ("linear", dict(cICP=bytes([1, 8, 0, 1]), gAMA=GAMMA[0.45455])),
  ("Adobe RGB", dict(gAMA=GAMMA[1 / 2.19921875], cHRM=struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000,
                                                                   15000, 6000)))])
def test_chunks_of_png(tmp_path, name, chunks):
  path = tmp_path / "x.png"
  in_profile(Image.fromarray(scene()), rgb_profile(name)).save(path)
  with_chunks(path, **chunks)
  # Linear values of 8 bits are coarse in the dark.
  assert worst(path) <= (14 if name == "linear" else 3)
  # The numbers of a map stay.
  assert worst(path, np.asarray(Image.open(path))[12, 12::24], colours=False) < 0.01


@pytest.mark.parametrize("chunks", [
  dict(gAMA=GAMMA[0.45455]), dict(gAMA=GAMMA[0.0]), dict(gAMA=GAMMA[0.45455], cHRM=SRGB_POINTS),
  dict(sRGB=b"\0", gAMA=GAMMA[1.0], cHRM=P3_POINTS), dict(cICP=bytes([1, 13, 0, 1]), gAMA=GAMMA[1.0]),
  dict(cICP=bytes([2, 2, 0, 1]))])
def test_chunks_that_say_srgb(tmp_path, chunks, capsys):
  path = tmp_path / "x.png"
  Image.fromarray(scene()).save(path)
  with_chunks(path, **chunks)
  assert worst(path) < 0.01 and capsys.readouterr().out == ""


@pytest.mark.parametrize("chunks, told", [
  (dict(cICP=bytes([200, 13, 0, 1])), "colour primaries 200"), (dict(cICP=bytes([9, 99, 0, 1])), "curve 99"),
  (dict(cICP=bytes([9, 16, 9, 0])), "matrix 9"), (dict(cHRM=bytes(32)), "no colours"),
  (dict(cHRM=struct.pack(">8I", 31270, 32900, *[30000, 30000] * 3)), "span no colours")])
def test_chunks_that_cannot_be_used(tmp_path, chunks, told, capsys):
  path = tmp_path / "x.png"
  Image.fromarray(scene()).save(path)
  with_chunks(path, **chunks)
  assert worst(path) < 0.01
  assert told in capsys.readouterr().out


def test_a_profile_stands_before_gamma_and_behind_cicp(tmp_path):
  wide, path = in_profile(Image.fromarray(scene()), rgb_profile("Display P3")), tmp_path / "x.png"
  wide.save(path, icc_profile=rgb_profile("Display P3"))
  with_chunks(path, gAMA=GAMMA[1.0])
  assert worst(path) <= 3
  wide.save(path, icc_profile=rgb_profile("ProPhoto"))
  with_chunks(path, cICP=bytes([12, 13, 0, 1]))
  assert worst(path) <= 3
  wide.save(path, icc_profile=rgb_profile("Display P3"))
  with_chunks(path, cICP=bytes([200, 13, 0, 1]))
  assert worst(path) <= 3


@pytest.mark.parametrize("transfer, white", [(16, 0.58068878), (18, 0.75)])
def test_white_of_high_dynamic_range(tmp_path, transfer, white):
  # 203 nits (ITU-R BT.2408), which is 58% of PQ and 75% of HLG; what is brighter is white, too.
  path = tmp_path / "x.png"
  levels = np.uint8([[0, round(white * 127.5), round(white * 255), 255]] * 4)
  Image.fromarray(np.repeat(levels[..., None], 3, -1)).save(path)
  with_chunks(path, cICP=bytes([9, transfer, 0, 1]))
  black, grey, at_white, bright = decode(path, 4096).premultiplied[1, :, 1]
  assert black == 0.0 and 0.05 < grey < 0.75 and at_white > 0.985 and bright == 1.0


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "P"])
def test_gamma_of_grey_and_palettes(tmp_path, mode):
  path, levels = tmp_path / "x.png", np.uint8([[0, 32, 64, 128, 255]])
  image = Image.fromarray(levels)
  (Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)).save(path)
  with_chunks(path, gAMA=GAMMA[1.0])
  expected = np.where(levels < 1, 0, 255 * (1.055 * (levels / 255) ** (1 / 2.4) - 0.055))
  assert np.abs(decode(path, 4096).premultiplied[..., 1] * 255 - expected).max() <= 1.5


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
def test_nclx_of_avif(tmp_path):
  path, plain = tmp_path / "x.avif", tmp_path / "plain.avif"
  in_profile(Image.fromarray(scene()), rgb_profile("Display P3")).save(path, quality=100, subsampling="4:4:4")
  Image.fromarray(scene()).save(plain, quality=100, subsampling="4:4:4")
  data = path.read_bytes()
  place = data.index(b"colrnclx") + 8
  path.write_bytes(data[:place] + struct.pack(">H", 12) + data[place + 2:])
  assert worst(path) <= 6 and worst(plain) <= 6
