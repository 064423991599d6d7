"""Pictures of objects: where they end up in their frame, what is left of them, what is said of those that won't do."""
import base64
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
  """An image of [H, W, 3] and [H, W], 0..255."""
  array = np.broadcast_to(np.asarray(rgb, np.uint8), np.shape(alpha) + (3,)) if alpha is not None else np.asarray(rgb)
  Image.fromarray(array if alpha is None else np.dstack([array, alpha]).astype(np.uint8)).save(path, **options)
  return path


def box(height, width, top, bottom, left, right):
  """Opacity 255 within the box, else 0."""
  alpha = np.zeros((height, width), np.uint8)
  alpha[top:bottom, left:right] = 255
  return alpha


def edges(opacity):
  """Top, bottom, left and right of what is more than half opaque, in fractions of the frame."""
  rows, columns = (np.flatnonzero((opacity > 0.5).any(axis)) for axis in (1, 0))
  return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]) / len(opacity)


def test_at_its_own_size_pixels_stay_what_they_are(tmp_path):
  rng = np.random.default_rng(0)
  rgb, alpha = rng.integers(0, 256, (32, 32, 3)), rng.integers(0, 256, (32, 32))
  found = read_photo(save(tmp_path / "x.png", rgb.astype(np.uint8), alpha), 32, framing="keep")
  opacity = alpha / 255
  np.testing.assert_allclose(found.opacity, opacity, atol=1e-6)
  np.testing.assert_allclose(found.rgb, rgb / 255 * opacity[..., None] + 1 - opacity[..., None], atol=1e-6)
  assert found.rgb.dtype == found.opacity.dtype == np.float32 and found.frame == Frame(1.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("size", [16, 50, 200])
def test_colours_under_transparent_pixels_do_not_bleed(tmp_path, size):
  rgb = np.zeros((64, 64, 3), np.uint8) + np.uint8([0, 255, 0])
  alpha = box(64, 64, 13, 49, 17, 50)
  rgb[alpha > 0] = RED
  found = read_photo(save(tmp_path / "x.png", rgb, alpha), size)
  colour = (found.rgb - 1 + found.opacity[..., None]) / np.maximum(found.opacity, 1e-6)[..., None]
  assert (np.abs(colour * 255 - RED).max(-1) < 3)[found.opacity > 0.05].all()
  assert found.opacity.sum() / size**2 == pytest.approx(36 * 33 / 64**2, rel=0.02)
  assert 0.0 <= found.rgb.min() <= found.rgb.max() <= 1.0


def test_a_large_picture_is_averaged_over_areas(tmp_path):
  """4,500 pixels, of which blocks are read: a pattern of single pixels becomes its mean."""
  alpha = box(4500, 30, 1000, 3500, 0, 30)
  rgb = np.zeros((4500, 30, 3), np.uint8)
  rgb[::2] = (240, 120, 60)
  found = read_photo(save(tmp_path / "x.png", rgb, alpha), 256, framing="keep")
  total = (1 - found.rgb).sum((0, 1)) / 256**2  # white less the picture
  np.testing.assert_allclose(total, 2500 * 30 / 4500**2 * (1 - np.array([120, 60, 30]) / 255), rtol=0.05)


@pytest.mark.parametrize("shape, corners", [
  ((100, 100), (10, 40, 60, 90)), ((60, 120), (5, 55, 90, 110)), ((150, 90), (100, 140, 5, 80)),
  ((100, 100), (49, 55, 1, 5))])
def test_centred(tmp_path, shape, corners):
  """The longest side becomes 60% of the frame, in the middle; the frame says where each point went."""
  found = read_photo(save(tmp_path / "x.png", RED, box(*shape, *corners)), 128, framing="centre")
  top, bottom, left, right = corners
  half = 0.3 * np.array([bottom - top, right - left]) / max(bottom - top, right - left)
  expected = [0.5 - half[0], 0.5 + half[0], 0.5 - half[1], 0.5 + half[1]]
  np.testing.assert_allclose(edges(found.opacity), expected, atol=0.6 / 128)
  scale, (to_right, down), aspect = found.frame
  side, moved = max(shape), lambda place, length, shift: scale * (place - length / 2) / side + shift + 0.5  # noqa: E731
  mapped = [*(moved(v, shape[0], down) for v in (top, bottom)), *(moved(u, shape[1], to_right) for u in (left, right))]
  np.testing.assert_allclose(mapped, expected, atol=1e-6)
  assert aspect == shape[1] / shape[0]


@pytest.mark.parametrize("corners, kept", [
  ((30, 70, 30, 70), True), ((8, 92, 8, 92), True), ((5, 95, 40, 60), False), ((33, 67, 33, 67), False),
  ((30, 70, 41, 81), True), ((30, 70, 44, 84), False), ((0, 60, 20, 80), False)],
  ids=["well placed", "large", "too large", "too small", "a little aside", "too far aside", "cut off"])
def test_auto_leaves_what_is_well_placed(tmp_path, capsys, corners, kept):
  path = save(tmp_path / "x.png", RED, box(100, 100, *corners))
  found = read_photo(path, 64)
  assert (found.frame[:2] == (1.0, (0.0, 0.0))) == kept
  assert found.frame == read_photo(path, 64, framing="keep" if kept else "centre").frame
  assert ("reaches the edge" in capsys.readouterr().out) == (corners[0] == 0)


def test_what_is_not_square_is_padded_with_nothing(tmp_path):
  found = read_photo(save(tmp_path / "x.png", RED, box(40, 80, 10, 30, 20, 60)), 80, framing="keep")
  np.testing.assert_allclose(found.opacity, np.pad(box(40, 80, 10, 30, 20, 60), ((20, 20), (0, 0))) / 255, atol=1e-6)


def disc(size, middle, radius, hole=0.0):
  """Coverage of a disc with a hole, edges one pixel soft; [size, size]."""
  y, x = np.mgrid[:size, :size] + 0.5
  distance = np.hypot(x - middle[0], y - middle[1])
  return np.clip(radius - distance + 0.5, 0, 1) * np.clip(distance - hole + 0.5, 0, 1)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (120, 125, 140)], ids=["white", "black", "grey"])
@pytest.mark.parametrize("ending, hard, soft", [("png", 0.001, 0.06), ("jpg", 0.02, 0.2)])
def test_a_plain_background_is_taken_out(tmp_path, capsys, colour, ending, hard, soft):
  """Also from the hole of a ring; white and black spots of the object stay, whatever the background."""
  cover = disc(128, (64, 64), 45, 15)[..., None]
  y, x = np.mgrid[:128, :128]
  rgb = np.array(RED) * (0.6 + 0.4 * y[..., None] / 128)
  for left, spot in ((34, (255, 255, 255)), (90, (5, 5, 5))):
    rgb[(abs(x - left) < 2) & (abs(y - 64) < 3)] = spot
  picture = np.rint(cover * rgb + (1 - cover) * np.array(colour)).astype(np.uint8)
  path = save(tmp_path / f"x.{ending}", picture, **({"quality": 92} if ending == "jpg" else {}))
  found = read_photo(path, 128)
  said = capsys.readouterr().out
  assert "taken out by its plain colour" in said and ("#%02x%02x%02x" % colour in said or ending == "jpg")
  wrong = np.abs(found.opacity - cover[..., 0])
  assert wrong.mean() < hard and wrong[(cover[..., 0] > 0) & (cover[..., 0] < 1)].mean() < soft
  on_white = cover * rgb / 255 + 1 - cover
  assert np.abs(found.rgb - on_white).mean() < 2 * hard and found.frame.scale == 1.0
  np.testing.assert_array_equal(read_photo(path, 128, background="plain").rgb, found.rgb)


def test_dust_is_no_part_of_the_object(tmp_path):
  picture = np.full((200, 200, 3), 255, np.uint8)
  picture[60:140, 70:130] = RED
  picture[3, 3] = (90, 90, 90)
  found = read_photo(save(tmp_path / "x.png", picture), 200)
  assert found.frame.scale == 1.0 and found.opacity[3, 3] == 0.0 and found.opacity.sum() == 80 * 60


def noisy(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
  return save(tmp_path / "x.png", picture), picture


@pytest.mark.parametrize("broken", [None, types.SimpleNamespace()], ids=["absent", "without a network"])
def test_without_rembg_it_says_what_to_do(tmp_path, monkeypatch, broken):
  def new_session(name):
    raise OSError("no route\nto host")

  path, _ = noisy(tmp_path)
  if broken is not None:
    broken.new_session = new_session
  monkeypatch.setitem(sys.modules, "rembg", broken)
  for background in ("auto", "rembg"):
    with pytest.raises(PictureError) as error:
      read_photo(path, 16, background=background)
    said = str(error.value)
    assert all(text in said for text in (str(path), "transparent", "plain")) and "\n" not in said
    assert ("sds_jax[background]" in said) if broken is None else ("no route to host" in said and "U2NET_HOME" in said)


def test_rembg_that_would_end_the_process_counts_as_absent(tmp_path, monkeypatch, capsys):
  """As it does where it finds no onnxruntime."""
  (tmp_path / "rembg.py").write_text("import sys\nprint('a page')\nsys.exit(1)\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "rembg", raising=False)
  with pytest.raises(PictureError, match="is not installed"):
    read_photo(noisy(tmp_path)[0], 16)
  assert capsys.readouterr().out == ""


def test_rembg_is_asked_for_the_mask_of_a_free_network(tmp_path, monkeypatch, capsys):
  def remove(image, session, only_mask):
    assert session == "session of u2net" and only_mask and image.size == (40, 40)
    return Image.fromarray(box(40, 40, 10, 30, 12, 28))

  fake = types.SimpleNamespace(new_session="session of {}".format, remove=remove)
  monkeypatch.setitem(sys.modules, "rembg", fake)
  path, picture = noisy(tmp_path)
  found = read_photo(path, 40)
  expected = np.full((40, 40, 3), 1.0)
  expected[10:30, 12:28] = picture[10:30, 12:28] / 255
  np.testing.assert_allclose(found.rgb, expected, atol=1e-6)
  assert "rembg" in capsys.readouterr().out


LARGEST_CHANNEL = ("CAg6cgovCgF4EgF5IglSZWR1Y2VNYXgqCwoEYXhlc0ABoAEHKg8KCGtlZXBkaW1zGAGgAQISAWdaHQoBeBIYChYIARISCgII"
                   "AQoCCAMKAwjAAgoDCMACYh0KAXkSGAoWCAESEgoCCAEKAggBCgMIwAIKAwjAAkIECgAQCw==")
"""An ONNX file of one node, from [1, 3, 320, 320] to [1, 1, 320, 320]: the largest of the three channels."""


def test_rembg_itself(tmp_path, monkeypatch):
  """With a network in place of its own, which takes for the object what is bright."""
  pytest.importorskip("rembg", reason="the library rembg is not installed: pip install '.[background]'")
  (tmp_path / "u2net.onnx").write_bytes(base64.b64decode(LARGEST_CHANNEL))
  monkeypatch.setenv("U2NET_HOME", str(tmp_path))
  y, x = np.mgrid[:128, :128]
  inside = (x - 64) ** 2 + (y - 60) ** 2 < 30**2
  dark = np.random.default_rng(0).integers(0, 60, (128, 128, 3))
  path = save(tmp_path / "x.png", np.where(inside[..., None], [240, 60, 20], dark).astype(np.uint8))
  found = read_photo(path, 128, framing="keep")
  assert found.opacity[inside].mean() > 0.85 and found.opacity[~inside].mean() < 0.25
  assert np.abs(found.rgb[60, 64] - np.array([240, 60, 20]) / 255).max() < 0.15


@pytest.mark.parametrize("settings, problem", [
  (dict(framing="center"), "framing='center' is none of auto, centre, keep"),
  (dict(background="none"), "background='none' is none of auto, alpha, plain, rembg"),
  (dict(background="alpha"), "has no transparent pixels"), (dict(background="plain"), "has no plain background")])
def test_settings_that_will_not_do(tmp_path, settings, problem):
  with pytest.raises(PictureError, match=problem):
    read_photo(noisy(tmp_path)[0], 16, **settings)


@pytest.mark.parametrize("shape, corners, settings", [
  ((50, 50), (0, 0, 0, 0), {}), ((50, 50), (20, 22, 20, 23), {}), ((1, 1), (0, 1, 0, 1), {}),
  ((10, 20000), (3, 9, 15, 19990), dict(framing="keep")), ((10, 20000), (3, 9, 15, 19990), {}),
  ((400, 400), (200, 204, 200, 204), dict(framing="keep"))],
  ids=["nothing", "six pixels", "one pixel", "a thread", "a thread, centred", "tiny in the frame"])
def test_too_little_to_see(tmp_path, shape, corners, settings):
  path = save(tmp_path / "x.png", RED, box(*shape, *corners))
  with pytest.raises(PictureError, match="shows (no object|an object of fewer)") as error:
    read_photo(path, 32, **settings)
  assert str(path) in str(error.value) and "\n" not in str(error.value)
  if "an object of fewer" in str(error.value):  # what helps, and not what has been done
    assert ("'centre' makes it larger" in str(error.value)) == (shape == (400, 400))


def test_a_uniform_picture_shows_nothing(tmp_path):
  with pytest.raises(PictureError, match="shows no object: 0 pixels"):
    read_photo(save(tmp_path / "x.png", np.full((30, 30, 3), 200, np.uint8)), 16)


@pytest.mark.parametrize("size", [32, 100])
def test_maps_move_with_their_picture(tmp_path, size):
  """Each pixel of a ramp of 16 bits comes out with the value of the place that it shows; the map may be larger."""
  picture = read_photo(save(tmp_path / "x.png", RED, box(60, 120, 5, 45, 60, 110)), size, framing="centre")
  y, x = np.mgrid[:120, :240]
  ramp = (x * 200 + y * 50).astype(np.uint16)
  Image.fromarray(ramp).save(tmp_path / "depth.png")
  depth = read_map(tmp_path / "depth.png", picture.frame, size, 1)
  scale, (right, down), _ = picture.frame
  v, u = (np.mgrid[:size, :size] + 0.5) / size - 0.5
  column, row = (u - right) / scale * 240 + 120, (v - down) / scale * 240 + 60
  expected = ((column - 0.5) * 200 + (row - 0.5) * 50) / 65535
  inside = (column > 8) & (column < 232) & (row > 8) & (row < 112)
  np.testing.assert_allclose(depth.values[..., 0][inside], expected[inside], atol=4e-4)
  assert inside.any() and (depth.opacity[inside] > 0.999).all()
  outside = (column < -8) | (column > 248) | (row < -8) | (row > 128)
  assert outside.any() and not depth.opacity[outside].any() and not depth.values[outside].any()


def test_maps_of_normals(tmp_path):
  colours = np.zeros((40, 40, 3), np.uint8) + np.uint8([128, 200, 255])
  alpha = box(40, 40, 10, 30, 10, 30)
  found = read_map(save(tmp_path / "n.png", colours, alpha), Frame(), 20, 3)
  inside = found.opacity > 0.5
  assert inside.sum() == 100 and found.values.shape == (20, 20, 3)
  assert np.abs(found.values[inside] - np.array([128, 200, 255]) / 255).max() < 1e-5


def grey_ramp(height, width):
  return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def test_a_small_map_may_have_rounded_sides(tmp_path):
  """Of a picture 300 x 200, one twelfth the size; but not any sides."""
  read_map(save(tmp_path / "x.png", grey_ramp(17, 25)), Frame(aspect=1.5), 16, 1)
  with pytest.raises(PictureError, match="1.33 times as wide as it is high, its picture 1.5 times"):
    read_map(save(tmp_path / "x.png", grey_ramp(9, 12)), Frame(aspect=1.5), 16, 1)


def test_depth_may_have_a_small_range(tmp_path):
  """Of 16 bits, as where it is in millimetres."""
  depth = (800 + np.arange(600) % 90).astype(np.uint16).reshape(20, 30)
  found = read_map(save(tmp_path / "x.png", depth), Frame(), 30, 1)
  np.testing.assert_allclose(found.values[5:25, :, 0], depth / 65535, atol=1e-6)


def test_maps_that_will_not_do(tmp_path):
  grey, coloured = np.full((20, 20), 90, np.uint8), np.full((20, 40, 3), (10, 200, 90), np.uint8)
  grey, coloured = save(tmp_path / "g.png", grey), save(tmp_path / "c.png", coloured)
  nowhere = save(tmp_path / "t.png", np.full((20, 20, 3), (1, 9, 200), np.uint8), np.zeros((20, 20), np.uint8))
  dot, flat = save(tmp_path / "d.png", grey_ramp(1, 1)), save(tmp_path / "f.png", grey_ramp(8, 12))
  for path, frame, channels, problem in (
      (grey, Frame(), 3, "is grey"), (coloured, Frame(), 1, "has colours"), (grey, Frame(), 2, "channels=2"),
      (grey, Frame(), 1, "one value all over"), (nowhere, Frame(), 3, "known at 0 pixels"),
      (dot, Frame(), 1, "known at 1 pixels"), (flat, Frame(aspect=1.0), 1, "1.5 times as wide"),
      (coloured, Frame(aspect=1.0), 3, "2 times as wide as it is high, its picture 1 times")):
    with pytest.raises(PictureError, match=problem):
      read_map(path, frame, 16, channels)


def test_resized_is_the_mean_over_areas():
  image = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
  image = np.repeat(np.repeat(image, 4, 0), 4, 1)
  found = photos.resize_square(image, 64)
  np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=2e-3)
  assert np.abs(found - image[2::4, 2::4]).mean() < 0.1 and np.array_equal(photos.resize_square(image, 256), image)
