"""Sample photos match their ground truth, and a ground truth is read only with its own pixels."""
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sds_jax.shapeworld import captions, sample_photos, scenes, view_dataset
from sds_jax.views import cameras, poses

SIZE = 48
FOCAL = 0.5 / math.tan(math.radians(23.0))


def axes(azimuth, elevation):
  """Returns the direction to the camera, right and up [3] at (azimuth, elevation), by plain trigonometry."""
  ca, sa, ce, se = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
  return np.array([ce * ca, ce * sa, se]), np.array([-sa, ca, 0.0]), np.array([-se * ca, -se * sa, ce])


def project(points, azimuth, elevation):
  """Projects points [N, 3] to (right, down) [N, 2], fractions of the frame from its centre, at distance 2.7."""
  towards, right, up = axes(azimuth, elevation)
  depth = 2.7 - points @ towards
  return FOCAL * np.stack([points @ right, -(points @ up)], -1) / depth[:, None]


def command(monkeypatch, capsys, *args):
  monkeypatch.setattr(sys, "argv", ["sample_photos", *args])
  sample_photos.main()
  return capsys.readouterr().out


def test_the_command_renders_the_ground_truth(tmp_path, monkeypatch, capsys, inside):
  """Compares the opacity with rays through the second definition in tests/shapeworld/conftest.py."""
  path = tmp_path / "new" / "house.png"
  output = command(monkeypatch, capsys, "--caption=A red house, side view", "--azimuth_deg=30", "--elevation_deg=20",
                 "--seed=5", f"--size={SIZE}", f"--out={path}")
  truth = sample_photos.read_truth(path)
  assert truth.caption == "a red house" and truth[1:3] == (30.0, 20.0) and str(path) in output
  assert truth == sample_photos.draw_truth(5, 0, "a red house", 30.0, 20.0)
  assert 0.8 <= truth.size <= 1.0 and max(map(abs, truth.shift)) <= 0.04 and (0.4 <= truth.ambient <= 1.0)
  image = np.asarray(Image.open(path))
  assert image.shape == (SIZE, SIZE, 4) and image.dtype == np.uint8
  towards, right, up = axes(math.radians(30.0), math.radians(20.0))
  v, u = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
  rays = (u[..., None] * right - v[..., None] * up) / FOCAL - towards
  far = np.linspace(1.7, 3.7, 300)[:, None, None, None]
  points = (2.7 * towards + far * rays - np.array(truth.shift)) / truth.size
  solid = inside["house"](points[..., 0], points[..., 1], points[..., 2]).any(0)
  opaque = image[..., 3] > 127
  assert (opaque & solid).sum() / (opaque | solid).sum() > 0.95
  red = image[opaque].astype(float)
  assert np.median(red[:, 0] / red[:, 1:3].max(1)) > 4  # the door is a minority of the pixels


def test_a_folder_of_photos(tmp_path, monkeypatch, capsys):
  """Checks held-out pairs at odd indices, and independence of the number of photos."""
  command(monkeypatch, capsys, "--num=4", f"--size={SIZE}", "--seed=3", f"--out={tmp_path / 'a'}")
  files = sorted((tmp_path / "a").iterdir())
  truths = [sample_photos.read_truth(path) for path in files]
  assert [path.name for path in files] == ["000.png", "001.png", "002.png", "003.png"]
  assert [captions.is_held_out(captions.parse(truth.caption)) for truth in truths] == [False, True, False, True]
  assert len({truth.azimuth_deg for truth in truths}) == 4 and all(-10 <= t.elevation_deg <= 50 for t in truths)
  assert truths[2] == sample_photos.draw_truth(3, 2)
  opaque = [np.asarray(Image.open(path))[..., 3] > 127 for path in files]
  assert all(0.02 < mask.mean() < 0.5 and not (mask[0] | mask[-1] | mask[:, 0] | mask[:, -1]).any() for mask in opaque)


def test_keys_differ_from_all_training_images():
  """Compares the keys with those of small seeds of data sets."""
  data = lambda key: tuple(np.asarray(jax.random.key_data(key)).tolist())  # noqa: E731
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  indices = np.arange(2000, dtype=np.uint32)
  training = {tuple(row) for seed in (0, 1, 5, 999) for row in
              np.asarray(jax.random.key_data(fold(jax.random.key(seed), indices))).tolist()}
  photo_keys = {data(jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(2**31)), seed), index))
                for seed in (0, 1, 5) for index in range(3)}
  assert sample_photos.ROOT_SEED == 2**31 and len(photo_keys) == 9 and not training & photo_keys


def test_random_placement_applies_the_drawn_placement():
  """Compares `place_at_random` with `sample_placement` and with the draws by hand."""
  key = jax.random.key(11)
  size, shift = jax.device_get(view_dataset.sample_placement(key))
  scene = scenes.scene_from_caption("a green cone on top of a blue cylinder")
  placed = jax.device_get(view_dataset.place_at_random(key, scene))
  size_key, shift_key = jax.random.split(key)
  assert size == np.asarray(jax.random.uniform(size_key, minval=0.8, maxval=1.0))
  np.testing.assert_array_equal(shift, np.asarray(jax.random.uniform(shift_key, (1, 3), minval=-0.04, maxval=0.04))[0])
  np.testing.assert_allclose(placed.offset, size * scene.offset + shift, rtol=1e-6)
  np.testing.assert_allclose(placed.scale, size * scene.scale, rtol=1e-6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Writes a photo; returns its path, its truth, and the values of its text chunk."""
  truth = sample_photos.draw_truth(1, 0, "a pink mug")
  path = sample_photos.write_photo(truth, SIZE, tmp_path_factory.mktemp("written") / "mug.png")
  with Image.open(path) as image:
    image.load()
    return path, truth, json.loads(image.text["shapeworld"])


def rewrite(path, out, text, pixels=lambda image: image, **options):
  info = PngImagePlugin.PngInfo()
  if text is not None:
    info.add_text("shapeworld", text, **options)
  with Image.open(path) as image:
    pixels(image).save(out, format="PNG", pnginfo=info, compress_level=1)
  return out


def test_a_truth_survives_compression_but_no_change_of_pixels(tmp_path, written):
  path, truth, values = written
  text = json.dumps(values)
  assert sample_photos.read_truth(rewrite(path, tmp_path / "x.png", text)) == truth
  assert sample_photos.read_truth(rewrite(path, tmp_path / "x.png", text, zip=True)) == truth
  for change in (lambda i: i.crop((4, 4, 44, 44)), lambda i: i.rotate(90), lambda i: i.resize((96, 96)),
                 lambda i: i.convert("RGB")):
    assert sample_photos.read_truth(rewrite(path, tmp_path / "x.png", text, change)) is None


@pytest.mark.parametrize("change", [
  dict(caption="a red dragon"), dict(caption="A PINK MUG"), dict(caption=7), dict(caption="a pink mug, side view"),
  dict(azimuth_deg=float("nan")), dict(azimuth_deg=1e9), dict(elevation_deg="20"), dict(elevation_deg=True),
  dict(light=[1.0, 2.0]), dict(light=[0, 0, float("inf")]), dict(light=None), dict(ambient=-0.1), dict(size=0.0),
  dict(size=50.0), dict(shift=[0.0, 0.0, 0.5]), dict(shift={"x": 1}), dict(pixels="0" * 64), dict(more=1)], ids=str)
def test_impossible_values_are_refused(tmp_path, written, change):
  path, _, values = written
  assert sample_photos.read_truth(rewrite(path, tmp_path / "x.png", json.dumps({**values, **change}))) is None


@pytest.mark.parametrize("text", [
  None, "", "{", "[]", "null", "[" * 3000, "{}", "\0", "x" * 200_000, "9" * 4000], ids=lambda text: str(text)[:6])
def test_other_texts_are_refused(tmp_path, written, text):
  assert sample_photos.read_truth(rewrite(written[0], tmp_path / "x.png", text)) is None


def test_other_files_have_no_truth(tmp_path, written):
  (tmp_path / "cut.png").write_bytes(written[0].read_bytes()[:900])
  (tmp_path / "text.png").write_text("hello")
  Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
  for name in ("cut.png", "text.png", "x.jpg", "none.png", "."):
    assert sample_photos.read_truth(tmp_path / name) is None
  bomb = rewrite(written[0], tmp_path / "bomb.png", "x" * 20_000_000, zip=True)
  assert bomb.stat().st_size < 200_000 and sample_photos.read_truth(bomb) is None


@pytest.mark.parametrize("args, problem", [
  (["--caption=a red dragon"], "unknown word 'dragon'"), (["--size=8"], "--size=8 is not in 16..1024"),
  (["--num=0"], "--num=0 must be at least 1"), (["--out=x.jpg"], "must end in .png"),
  (["--elevation_deg=95"], "elevation_deg=95.0 is not in"), (["--azimuth_deg=nan"], "azimuth_deg=nan is not in"),
  (["--seed=-1"], "seed=-1 is not in")])
def test_mistakes(tmp_path, monkeypatch, capsys, args, problem):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as error:
    command(monkeypatch, capsys, *args)
  assert error.value.code == 2 and problem in capsys.readouterr().err and not list(tmp_path.iterdir())


TRUTH = sample_photos.Truth("a red house", 130.0, 25.0, (1.0, 0.0, 0.0), 0.5, 0.9, (0.0, 0.02, 0.01))


def test_the_photo_camera_of_a_run_maps_to_the_camera_of_the_truth():
  run = cameras.orbit(math.radians(-40.0), math.radians(25.0), poses.DISTANCE, poses.FOV_Y)
  pose = sample_photos.PhotoPose(math.radians(-40.0), math.radians(25.0))
  transformed = jax.tree.leaves(sample_photos.cameras_to_scene_frame(run, TRUTH, pose))
  for leaf, expected in zip(transformed, jax.tree.leaves(sample_photos.photo_camera(TRUTH)), strict=True):
    np.testing.assert_allclose(leaf, expected, atol=1e-5)


def test_a_reframed_photo_moves_the_object():
  """Checks the plane facing the camera exactly, and cameras against points of a run anywhere."""
  azimuth, elevation, frame = math.radians(-40.0), math.radians(25.0), (1.3, (0.06, -0.1))
  pose = sample_photos.PhotoPose(azimuth, elevation, scale=frame[0], shift=frame[1])
  towards, right, up = axes(azimuth, elevation)
  rng = np.random.default_rng(0)
  flat = rng.uniform(-0.5, 0.5, (20, 2)) @ np.stack([right, up])
  back = sample_photos.points_to_scene_frame(flat, TRUTH, pose)
  before = project(back, math.radians(TRUTH.azimuth_deg), math.radians(TRUTH.elevation_deg))
  np.testing.assert_allclose(1.3 * before + frame[1], project(flat, azimuth, elevation), atol=1e-5)
  points = rng.uniform(-0.5, 0.5, (20, 3))
  side = jax.tree.map(lambda leaf: jnp.stack([leaf]), cameras.orbit(1.0, 0.7, poses.DISTANCE, poses.FOV_Y))
  camera = jax.tree.map(lambda leaf: np.asarray(leaf[0]), sample_photos.cameras_to_scene_frame(side, TRUTH, pose))
  local = (sample_photos.points_to_scene_frame(points, TRUTH, pose) - camera.position) @ camera.rotation
  projected = camera.focal * local[:, :2] / -local[:, 2:] * [1, -1]
  np.testing.assert_allclose(projected, project(points, 1.0, 0.7), atol=1e-5)


def test_the_object_fills_the_frame_of_another_camera_equally():
  """Projects the plane facing a distant camera with a long lens to the same places of the photo."""
  azimuth, elevation, distance, fov_y = math.radians(-40.0), math.radians(25.0), 3.8, math.radians(20.0)
  towards, right, up = axes(azimuth, elevation)
  flat = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 2)) @ np.stack([right, up])
  back = sample_photos.points_to_scene_frame(flat, TRUTH, sample_photos.PhotoPose(azimuth, elevation, distance, fov_y))
  before = project(back, math.radians(TRUTH.azimuth_deg), math.radians(TRUTH.elevation_deg))
  across = flat @ np.stack([right, -up], -1)
  np.testing.assert_allclose(before, across / (2 * distance * math.tan(fov_y / 2)), atol=1e-5)
