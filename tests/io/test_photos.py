"""Input photos: framing, background removal, maps, and the errors of unusable photos."""
import base64
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from sds_jax.io import photos
from sds_jax.io.photos import Frame, read_map, read_photo
from sds_jax.priors.loading.decoding import PictureError

RED = (200, 40, 30)


def save(path, rgb, alpha=None, **options):
  """Writes an image of colours [H, W, 3] and opacity [H, W], 0..255."""
  array = np.broadcast_to(np.asarray(rgb, np.uint8), np.shape(alpha) + (3,)) if alpha is not None else np.asarray(rgb)
  Image.fromarray(array if alpha is None else np.dstack([array, alpha]).astype(np.uint8)).save(path, **options)
  return path


def box(height, width, top, bottom, left, right):
  """Returns opacity 255 within the box, else 0."""
  alpha = np.zeros((height, width), np.uint8)
  alpha[top:bottom, left:right] = 255
  return alpha


def edges(opacity):
  """Returns top, bottom, left and right of the pixels more than half opaque, as fractions of the frame."""
  rows, columns = (np.flatnonzero((opacity > 0.5).any(axis)) for axis in (1, 0))
  return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]) / len(opacity)


def test_pixels_are_unchanged_at_the_original_size(tmp_path):
  rng = np.random.default_rng(0)
  rgb, alpha = rng.integers(0, 256, (32, 32, 3)), rng.integers(0, 256, (32, 32))
  photo = read_photo(save(tmp_path / "x.png", rgb.astype(np.uint8), alpha), 32, framing="keep")
  opacity = alpha / 255
  np.testing.assert_allclose(photo.opacity, opacity, atol=1e-6)
  np.testing.assert_allclose(photo.rgb, rgb / 255 * opacity[..., None] + 1 - opacity[..., None], atol=1e-6)
  assert photo.rgb.dtype == photo.opacity.dtype == np.float32 and photo.frame == Frame(1.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("size", [16, 50, 200])
def test_colours_under_transparent_pixels_do_not_bleed(tmp_path, size):
  rgb = np.zeros((64, 64, 3), np.uint8) + np.uint8([0, 255, 0])
  alpha = box(64, 64, 13, 49, 17, 50)
  rgb[alpha > 0] = RED
  photo = read_photo(save(tmp_path / "x.png", rgb, alpha), size)
  colour = (photo.rgb - 1 + photo.opacity[..., None]) / np.maximum(photo.opacity, 1e-6)[..., None]
  assert (np.abs(colour * 255 - RED).max(-1) < 3)[photo.opacity > 0.05].all()
  assert photo.opacity.sum() / size**2 == pytest.approx(36 * 33 / 64**2, rel=0.02)
  assert 0.0 <= photo.rgb.min() <= photo.rgb.max() <= 1.0


def test_a_large_photo_is_averaged_over_areas(tmp_path):
  """Reads 4,500 pixels a side by blocks: a pattern of single pixels becomes the mean."""
  alpha = box(4500, 30, 1000, 3500, 0, 30)
  rgb = np.zeros((4500, 30, 3), np.uint8)
  rgb[::2] = (240, 120, 60)
  photo = read_photo(save(tmp_path / "x.png", rgb, alpha), 256, framing="keep")
  total = (1 - photo.rgb).sum((0, 1)) / 256**2  # white minus the photo
  np.testing.assert_allclose(total, 2500 * 30 / 4500**2 * (1 - np.array([120, 60, 30]) / 255), rtol=0.05)


@pytest.mark.parametrize("shape, corners", [
  ((100, 100), (10, 40, 60, 90)), ((60, 120), (5, 55, 90, 110)), ((150, 90), (100, 140, 5, 80)),
  ((100, 100), (49, 55, 1, 5))])
def test_centring(tmp_path, shape, corners):
  """Checks the longest side (60% of the frame), the middle, and the frame's map of points."""
  photo = read_photo(save(tmp_path / "x.png", RED, box(*shape, *corners)), 128, framing="centre")
  top, bottom, left, right = corners
  half = 0.3 * np.array([bottom - top, right - left]) / max(bottom - top, right - left)
  expected = [0.5 - half[0], 0.5 + half[0], 0.5 - half[1], 0.5 + half[1]]
  np.testing.assert_allclose(edges(photo.opacity), expected, atol=0.6 / 128)
  scale, (to_right, down), aspect = photo.frame
  side, moved = max(shape), lambda place, length, shift: scale * (place - length / 2) / side + shift + 0.5  # noqa: E731
  mapped = [*(moved(v, shape[0], down) for v in (top, bottom)), *(moved(u, shape[1], to_right) for u in (left, right))]
  np.testing.assert_allclose(mapped, expected, atol=1e-6)
  assert aspect == shape[1] / shape[0]


@pytest.mark.parametrize("corners, kept", [
  ((30, 70, 30, 70), True), ((8, 92, 8, 92), True), ((5, 95, 40, 60), False), ((33, 67, 33, 67), False),
  ((30, 70, 41, 81), True), ((30, 70, 44, 84), False), ((0, 60, 20, 80), False)],
  ids=["well placed", "large", "too large", "too small", "a little aside", "too far aside", "cut off"])
def test_auto_keeps_well_placed_objects(tmp_path, capsys, corners, kept):
  path = save(tmp_path / "x.png", RED, box(100, 100, *corners))
  photo = read_photo(path, 64)
  assert (photo.frame[:2] == (1.0, (0.0, 0.0))) == kept
  assert photo.frame == read_photo(path, 64, framing="keep" if kept else "centre").frame
  assert ("reaches the edge" in capsys.readouterr().out) == (corners[0] == 0)


def test_rectangles_are_padded_with_transparency(tmp_path):
  photo = read_photo(save(tmp_path / "x.png", RED, box(40, 80, 10, 30, 20, 60)), 80, framing="keep")
  np.testing.assert_allclose(photo.opacity, np.pad(box(40, 80, 10, 30, 20, 60), ((20, 20), (0, 0))) / 255, atol=1e-6)


def disc(size, middle, radius, hole=0.0):
  """Returns the coverage [size, size] of a disc with a hole; edges are a pixel wide."""
  y, x = np.mgrid[:size, :size] + 0.5
  distance = np.hypot(x - middle[0], y - middle[1])
  return np.clip(radius - distance + 0.5, 0, 1) * np.clip(distance - hole + 0.5, 0, 1)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (120, 125, 140)], ids=["white", "black", "grey"])
@pytest.mark.parametrize("ending, hard, soft", [("png", 0.001, 0.06), ("jpg", 0.02, 0.2)])
def test_a_plain_background_is_removed(tmp_path, capsys, colour, ending, hard, soft):
  """Removes the hole of a ring, too; white and black spots of the object stay on every background."""
  cover = disc(128, (64, 64), 45, 15)[..., None]
  y, x = np.mgrid[:128, :128]
  rgb = np.array(RED) * (0.6 + 0.4 * y[..., None] / 128)
  for left, spot in ((34, (255, 255, 255)), (90, (5, 5, 5))):
    rgb[(abs(x - left) < 2) & (abs(y - 64) < 3)] = spot
  picture = np.rint(cover * rgb + (1 - cover) * np.array(colour)).astype(np.uint8)
  path = save(tmp_path / f"x.{ending}", picture, **({"quality": 92} if ending == "jpg" else {}))
  photo = read_photo(path, 128)
  message = capsys.readouterr().out
  assert "removed by the plain colour" in message and ("#%02x%02x%02x" % colour in message or ending == "jpg")
  wrong = np.abs(photo.opacity - cover[..., 0])
  assert wrong.mean() < hard and wrong[(cover[..., 0] > 0) & (cover[..., 0] < 1)].mean() < soft
  on_white = cover * rgb / 255 + 1 - cover
  assert np.abs(photo.rgb - on_white).mean() < 2 * hard and photo.frame.scale == 1.0
  np.testing.assert_array_equal(read_photo(path, 128, background="plain").rgb, photo.rgb)


def test_dust_is_removed(tmp_path):
  picture = np.full((200, 200, 3), 255, np.uint8)
  picture[60:140, 70:130] = RED
  picture[3, 3] = (90, 90, 90)
  photo = read_photo(save(tmp_path / "x.png", picture), 200)
  assert photo.frame.scale == 1.0 and photo.opacity[3, 3] == 0.0 and photo.opacity.sum() == 80 * 60


def noisy(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
  return save(tmp_path / "x.png", picture), picture


@pytest.mark.parametrize("broken", [None, types.SimpleNamespace()], ids=["absent", "without a network"])
def test_missing_rembg_is_an_error_with_remedies(tmp_path, monkeypatch, broken):
  def new_session(name):
    raise OSError("no route\nto host")

  path, _ = noisy(tmp_path)
  if broken is not None:
    broken.new_session = new_session
  monkeypatch.setitem(sys.modules, "rembg", broken)
  for background in ("auto", "rembg"):
    with pytest.raises(PictureError) as error:
      read_photo(path, 16, background=background)
    message = str(error.value)
    assert all(text in message for text in (str(path), "transparent", "plain")) and "\n" not in message
    expected = ("sds_jax[background]",) if broken is None else ("no route to host", "U2NET_HOME")
    assert all(text in message for text in expected)


def test_an_exit_in_the_import_of_rembg_counts_as_missing(tmp_path, monkeypatch, capsys):
  """Imitates rembg without onnxruntime."""
  (tmp_path / "rembg.py").write_text("import sys\nprint('a page')\nsys.exit(1)\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "rembg", raising=False)
  with pytest.raises(PictureError, match="is not installed"):
    read_photo(noisy(tmp_path)[0], 16)
  assert capsys.readouterr().out == ""


def test_rembg_is_called_for_the_mask_of_a_free_network(tmp_path, monkeypatch, capsys):
  def remove(image, session, only_mask):
    assert session == "session of u2net" and only_mask and image.size == (40, 40)
    return Image.fromarray(box(40, 40, 10, 30, 12, 28))

  fake = types.SimpleNamespace(new_session="session of {}".format, remove=remove)
  monkeypatch.setitem(sys.modules, "rembg", fake)
  path, picture = noisy(tmp_path)
  photo = read_photo(path, 40)
  expected = np.full((40, 40, 3), 1.0)
  expected[10:30, 12:28] = picture[10:30, 12:28] / 255
  np.testing.assert_allclose(photo.rgb, expected, atol=1e-6)
  assert "rembg" in capsys.readouterr().out


LARGEST_CHANNEL = ("CAg6cgovCgF4EgF5IglSZWR1Y2VNYXgqCwoEYXhlc0ABoAEHKg8KCGtlZXBkaW1zGAGgAQISAWdaHQoBeBIYChYIARISCgII"
                   "AQoCCAMKAwjAAgoDCMACYh0KAXkSGAoWCAESEgoCCAEKAggBCgMIwAIKAwjAAkIECgAQCw==")
"""An ONNX file with a single node, [1, 3, 320, 320] -> [1, 1, 320, 320]: the largest of the three channels."""


def test_the_installed_rembg(tmp_path, monkeypatch):
  """Replaces the network of rembg by a network for bright pixels."""
  pytest.importorskip("rembg", reason="the library rembg is not installed: pip install '.[background]'")
  (tmp_path / "u2net.onnx").write_bytes(base64.b64decode(LARGEST_CHANNEL))
  monkeypatch.setenv("U2NET_HOME", str(tmp_path))
  y, x = np.mgrid[:128, :128]
  inside = (x - 64) ** 2 + (y - 60) ** 2 < 30**2
  dark = np.random.default_rng(0).integers(0, 60, (128, 128, 3))
  path = save(tmp_path / "x.png", np.where(inside[..., None], [240, 60, 20], dark).astype(np.uint8))
  photo = read_photo(path, 128, framing="keep")
  assert photo.opacity[inside].mean() > 0.85 and photo.opacity[~inside].mean() < 0.25
  assert np.abs(photo.rgb[60, 64] - np.array([240, 60, 20]) / 255).max() < 0.15
  numba = pytest.importorskip("numba")  # rembg brings it
  assert numba.njit(lambda x: x + 1)(1) == 2 and "NUMBA_DISABLE_JIT" not in os.environ
  assert isinstance(numba.njit(lambda x: x + 1), numba.core.dispatcher.Dispatcher)


@pytest.mark.parametrize("given", [None, "0"])
def test_numba_compiles_nothing_while_rembg_is_imported(tmp_path, monkeypatch, given):
  """Imitates numba, which reads the variable at its import, and a setting of the user's, which is kept."""
  (tmp_path / "numba.py").write_text("import os, types\nconfig = types.SimpleNamespace("
                                     "DISABLE_JIT=int(os.environ.get('NUMBA_DISABLE_JIT', 0)))\n")
  (tmp_path / "rembg.py").write_text("import numba, pathlib\npathlib.Path(__file__).with_name('seen').write_text("
                                     "str(numba.config.DISABLE_JIT))\nraise ImportError\n")
  monkeypatch.syspath_prepend(tmp_path)
  for name in ("numba", "rembg"):
    monkeypatch.delitem(sys.modules, name, raising=False)
  if given is None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
  else:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", given)
  with pytest.raises(PictureError, match="not installed"):
    read_photo(noisy(tmp_path)[0], 16, background="rembg")
  assert (tmp_path / "seen").read_text() == ("1" if given is None else "0")
  assert sys.modules.pop("numba").config.DISABLE_JIT == 0 and os.environ.get("NUMBA_DISABLE_JIT") == given


@pytest.mark.parametrize("settings, problem", [
  (dict(framing="center"), "framing='center' is none of auto, centre, keep"),
  (dict(background="none"), "background='none' is none of auto, alpha, plain, rembg"),
  (dict(background="alpha"), "has no transparent pixels"), (dict(background="plain"), "has no plain background")])
def test_illegal_settings_are_errors(tmp_path, settings, problem):
  with pytest.raises(PictureError, match=problem):
    read_photo(noisy(tmp_path)[0], 16, **settings)


@pytest.mark.parametrize("shape, corners, settings", [
  ((50, 50), (0, 0, 0, 0), {}), ((50, 50), (20, 22, 20, 23), {}), ((1, 1), (0, 1, 0, 1), {}),
  ((10, 20000), (3, 9, 15, 19990), dict(framing="keep")), ((10, 20000), (3, 9, 15, 19990), {}),
  ((400, 400), (200, 204, 200, 204), dict(framing="keep"))],
  ids=["nothing", "six pixels", "one pixel", "a thread", "a thread, centred", "tiny in the frame"])
def test_too_few_object_pixels_are_an_error(tmp_path, shape, corners, settings):
  path = save(tmp_path / "x.png", RED, box(*shape, *corners))
  with pytest.raises(PictureError, match="shows (no object|an object of fewer)") as error:
    read_photo(path, 32, **settings)
  assert str(path) in str(error.value) and "\n" not in str(error.value)
  if "an object of fewer" in str(error.value):  # the remedy is one not yet applied
    assert ("'centre' makes it larger" in str(error.value)) == (shape == (400, 400))


def test_a_uniform_photo_shows_no_object(tmp_path):
  with pytest.raises(PictureError, match="shows no object: 0 pixels"):
    read_photo(save(tmp_path / "x.png", np.full((30, 30, 3), 200, np.uint8)), 16)


@pytest.mark.parametrize("size", [32, 100])
def test_maps_move_with_the_photo(tmp_path, size):
  """Follows a 16-bit ramp through the move; the map is larger than the photo."""
  photo = read_photo(save(tmp_path / "x.png", RED, box(60, 120, 5, 45, 60, 110)), size, framing="centre")
  y, x = np.mgrid[:120, :240]
  ramp = (x * 200 + y * 50).astype(np.uint16)
  Image.fromarray(ramp).save(tmp_path / "depth.png")
  depth = read_map(tmp_path / "depth.png", photo.frame, size, 1)
  scale, (right, down), _ = photo.frame
  v, u = (np.mgrid[:size, :size] + 0.5) / size - 0.5
  column, row = (u - right) / scale * 240 + 120, (v - down) / scale * 240 + 60
  expected = ((column - 0.5) * 200 + (row - 0.5) * 50) / 65535
  inside = (column > 8) & (column < 232) & (row > 8) & (row < 112)
  np.testing.assert_allclose(depth.values[..., 0][inside], expected[inside], atol=4e-4)
  assert inside.any() and (depth.opacity[inside] > 0.999).all()
  outside = (column < -8) | (column > 248) | (row < -8) | (row > 128)
  assert outside.any() and not depth.opacity[outside].any() and not depth.values[outside].any()


def test_normal_maps(tmp_path):
  colours = np.zeros((40, 40, 3), np.uint8) + np.uint8([128, 200, 255])
  alpha = box(40, 40, 10, 30, 10, 30)
  normals = read_map(save(tmp_path / "n.png", colours, alpha), Frame(), 20, 3)
  inside = normals.opacity > 0.5
  assert inside.sum() == 100 and normals.values.shape == (20, 20, 3)
  assert np.abs(normals.values[inside] - np.array([128, 200, 255]) / 255).max() < 1e-5


def grey_ramp(height, width):
  return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def test_a_small_map_may_have_rounded_sides(tmp_path):
  """Accepts 25 x 17 for a photo of 300 x 200, but not 12 x 9."""
  read_map(save(tmp_path / "x.png", grey_ramp(17, 25)), Frame(aspect=1.5), 16, 1)
  with pytest.raises(PictureError, match="1.33 times as wide as it is high, its photo 1.5 times"):
    read_map(save(tmp_path / "x.png", grey_ramp(9, 12)), Frame(aspect=1.5), 16, 1)


def test_depth_may_have_a_small_range(tmp_path):
  """Reads 16-bit depth in millimetres."""
  depth = (800 + np.arange(600) % 90).astype(np.uint16).reshape(20, 30)
  depth_map = read_map(save(tmp_path / "x.png", depth), Frame(), 30, 1)
  np.testing.assert_allclose(depth_map.values[5:25, :, 0], depth / 65535, atol=1e-6)


def test_unusable_maps_are_errors(tmp_path):
  grey, coloured = np.full((20, 20), 90, np.uint8), np.full((20, 40, 3), (10, 200, 90), np.uint8)
  grey, coloured = save(tmp_path / "g.png", grey), save(tmp_path / "c.png", coloured)
  nowhere = save(tmp_path / "t.png", np.full((20, 20, 3), (1, 9, 200), np.uint8), np.zeros((20, 20), np.uint8))
  dot, flat = save(tmp_path / "d.png", grey_ramp(1, 1)), save(tmp_path / "f.png", grey_ramp(8, 12))
  for path, frame, channels, problem in (
      (grey, Frame(), 3, "is grey"), (coloured, Frame(), 1, "has colours"), (grey, Frame(), 2, "channels=2"),
      (grey, Frame(), 1, "one value all over"), (nowhere, Frame(), 3, "known at 0 pixels"),
      (dot, Frame(), 1, "known at 1 pixels"), (flat, Frame(aspect=1.0), 1, "1.5 times as wide"),
      (coloured, Frame(aspect=1.0), 3, "2 times as wide as it is high, its photo 1 times")):
    with pytest.raises(PictureError, match=problem):
      read_map(path, frame, 16, channels)


def test_resize_square_averages_over_areas():
  image = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
  image = np.repeat(np.repeat(image, 4, 0), 4, 1)
  small = photos.resize_square(image, 64)
  np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), atol=2e-3)
  assert np.abs(small - image[2::4, 2::4]).mean() < 0.1 and np.array_equal(photos.resize_square(image, 256), image)
