"""Tests maps of a photo in the documented conventions: exact maps have a small loss, wrong maps a large one."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sds_jax import schema, settings
from sds_jax.io import run_files
from sds_jax.priors.loading.decoding import PictureError
from sds_jax.shapeworld import sample_photos, tracer
from sds_jax.tasks import photo
from sds_jax.training.resume import ResumeError
from sds_jax.training.terms import reference
from sds_jax.types import RenderOutput
from sds_jax.views import cameras

SIZE, FINE = 64, 256
TRACE = jax.jit(tracer.trace)
"""Called for SIZE x SIZE rays at a time, so that it is compiled once."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
  """Returns (folder with picture.png and its exact maps, a perfect render of the photo's view, the camera)."""
  folder = tmp_path_factory.mktemp("maps")
  truth = sample_photos.draw_truth(3, 0, "a red house", 40.0, 20.0)
  sample_photos.write_photo(truth, FINE, folder / "picture.png")
  shot = sample_photos.photo_camera(truth)
  distance, normals, mask = trace(truth, shot, FINE)
  axis = -np.asarray(shot.rotation)[:, 2]
  depth = distance * (np.asarray(cameras.camera_rays(shot, FINE, FINE).directions) @ axis)
  for name, values in (("depth", depth), ("disparity", 1.0 / np.maximum(depth, 0.1))):
    low, high = values[mask].min(), values[mask].max()
    grey = np.where(mask, (values - low) / (high - low), 0.5)  # pixels outside the object have no value
    Image.fromarray(np.rint(grey * 65535).astype(np.uint16)).save(folder / f"{name}.png")
  local = np.where(mask[..., None], normals @ np.asarray(shot.rotation), 0.0)  # right, up, towards the camera
  for name, signs in (("normals", (1, 1, 1)), ("flipped", (1, -1, 1))):
    colours = np.rint((local * signs + 1.0) / 2.0 * 255).astype(np.uint8)
    Image.fromarray(np.dstack([colours, mask.astype(np.uint8) * 255])).save(folder / f"{name}.png")
  distance, normals, mask = trace(truth, shot, SIZE)
  image = lambda values: jnp.asarray(values[None], jnp.float32)  # noqa: E731
  out = RenderOutput(rgb=image(np.zeros((SIZE, SIZE, 3))), opacity=image(mask),
                     depth=image(np.where(mask, distance, 0)),
                     normals=image(np.where(mask[..., None], normals, 0)), orientation=image(np.zeros((SIZE, SIZE))))
  return folder, out, jax.tree.map(lambda leaf: leaf[None], shot)


def trace(truth, shot, size):
  """Returns distances [S, S], normals [S, S, 3] and mask [S, S] of the exact scene."""
  rays = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, SIZE**2, 3), cameras.camera_rays(shot, size, size))
  parts = [TRACE(sample_photos.truth_scene(truth), jax.tree.map(lambda leaf: leaf[i], rays))
           for i in range(len(rays.origins))]
  hit = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
  return (hit.distance.reshape(size, size), hit.normals.reshape(size, size, 3), hit.mask.reshape(size, size))


def photo_data(folder, **maps):
  """Returns the arrays of the photo in the folder with these maps."""
  maps = {name: str(folder / value) if value.endswith(".png") else value for name, value in maps.items()}
  tree = schema.replaced(settings.TREES["image3d"](), {
    "picture.framing": "keep", "render.height": SIZE, "render.width": SIZE,
    **{f"picture.{name}": value for name, value in maps.items()}})
  arrays = photo.read_input(str(folder / "picture.png"), tree.picture, tree.render).arrays
  return {name: jnp.asarray(values) for name, values in arrays.items()}


@pytest.mark.parametrize("kind, other", [("depth", "disparity"), ("disparity", "depth")])
def test_depth_and_disparity_have_opposite_signs(scene, kind, other):
  folder, out, shot = scene
  right = photo_data(folder, depth=f"{kind}.png", depth_is=kind)
  assert {*right} == {"photo", kind}
  assert float(reference.depth(out, right, None, shot)) < 0.02
  wrong = photo_data(folder, depth=f"{kind}.png", depth_is=other)
  assert float(reference.depth(out, wrong, None, shot)) > 1.5


def test_a_run_does_not_continue_with_other_maps(scene, tmp_path):
  folder, *_ = scene
  for name in ("picture", "depth", "disparity", "normals"):
    shutil.copyfile(folder / f"{name}.png", tmp_path / f"{name}.png")
  image = str(tmp_path / "picture.png")
  tree = schema.replaced(settings.TREES["image3d"](), {
    "picture.depth": str(tmp_path / "depth.png"), "picture.normals": str(tmp_path / "normals.png")})
  given = tree.picture
  workdir = tmp_path / "run"
  workdir.mkdir()
  with run_files.recording(workdir):  # as in a run, which removes only what runs have written
    framed = photo.read_input(image, given, tree.render).photo
    photo.keep_photo(image, given, framed, dict(elevation=0.1, azimuth=0.0), workdir)
    photo.check_same_photo(image, given, workdir)
    assert {"original.png", "depth.png", "normals.png"} <= {path.name for path in workdir.iterdir()}
    shutil.copyfile(tmp_path / "disparity.png", tmp_path / "depth.png")
    with pytest.raises(ResumeError, match="config.picture.depth=.* differs from the file"):
      photo.check_same_photo(image, given, workdir)
    less = schema.replaced(given, {"depth": ""})
    with pytest.raises(ResumeError, match="config.picture.depth=''"):
      photo.check_same_photo(image, less, workdir)
    (workdir / "depth.txt").write_text("the user's own")
    photo.keep_photo(image, less, framed, dict(elevation=0.1, azimuth=0.0), workdir)
    assert not (workdir / "depth.png").exists() and (workdir / "depth.txt").exists()
    with pytest.raises(ResumeError, match="which was none"):
      photo.check_same_photo(image, given, workdir)


def test_a_map_must_cover_the_object(scene, tmp_path):
  folder, *_ = scene
  with Image.open(folder / "normals.png") as image:
    colours = np.array(image)
  colours[..., :3], colours[..., 3] = (128, 200, 255), 255 - colours[..., 3]
  Image.fromarray(colours).save(folder / "behind.png")
  with pytest.raises(PictureError, match="behind.png is transparent where .*picture.png shows the object"):
    photo_data(folder, normals="behind.png")


def test_normals_in_the_frame_of_the_camera(scene):
  folder, out, shot = scene
  exact = float(reference.normals(out, photo_data(folder, normals="normals.png"), None, shot))
  flipped = float(reference.normals(out, photo_data(folder, normals="flipped.png"), None, shot))
  assert exact < 0.04 and flipped > 5 * exact, (exact, flipped)  # edges are rounder at a quarter of the size
