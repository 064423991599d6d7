"""An object from a picture by the command: what it leaves, its scores, and what it refuses in one line."""
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from sds_jax.shapeworld import sample_photos


@pytest.fixture(scope="module")
def image_config(tiny_view_prior):
  return (f"--config=configs/image.py:{tiny_view_prior}",)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  """A sample picture, which holds its truth."""
  truth = sample_photos.draw_truth(3, 0, "a red house", 40.0, 20.0)
  return sample_photos.write_photo(truth, 64, tmp_path_factory.mktemp("pictures") / "house.png")


@pytest.fixture(scope="module")
def flags_of(tiny_flags):
  return [flag for flag in tiny_flags if not flag.startswith(("--config.prompt=", "--config.prior.path="))]


@pytest.fixture(scope="module")
def finished():
  """The folder and the stdout of the finished run, once there is one."""
  return []


@pytest.fixture
def made(command, finished, linear_networks, image_config, flags_of, picture, tmp_path_factory):
  """(folder, stdout) of a finished run, the same for all tests."""
  if not finished:
    folder = tmp_path_factory.mktemp("runs") / "house"
    status, out, err = command(*image_config, *flags_of, f"--config.image={picture}", f"--workdir={folder}")
    assert status == 0, err
    finished.extend((folder, out))
  return finished


def test_it_leaves_what_text_leaves_and_the_picture_beside_the_object(made, picture):
  folder, out = made
  assert "elevation of" in out and f"{folder / 'report.html'}" in out
  for name in ("mesh.glb", "renders.png", "report.html", "reference.png", "input.png", "original.png", "config.json"):
    assert (folder / name).stat().st_size > 0, name
  assert (folder / "original.png").read_bytes() == picture.read_bytes()
  page = (folder / "report.html").read_text(encoding="utf-8")
  assert "Input photo" in page and "house.png" in page
  with Image.open(folder / "input.png") as taken, Image.open(picture) as given:
    taken = np.asarray(taken.convert("RGBA").resize(given.size, Image.Resampling.BOX), float)
    np.testing.assert_allclose(taken[..., 3], np.asarray(given, float)[..., 3], atol=40)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
  assert {"rgb", "mask", "sds_grad_norm"} <= set(rows[-1])


def test_it_is_scored_against_the_scene_of_its_picture(command, made, coarse_scores):
  folder, _ = made
  status, out, err = command("--mode=evaluate", f"--workdir={folder}")
  assert status == 0, err
  scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
  assert 0.0 <= scores["silhouette_iou"] <= 1.0 and np.isfinite(scores["reference_psnr"])
  assert "unseen_iou" in out


def test_another_picture_does_not_go_on_with_this_ones_run(command, image_config, flags_of, made, tmp_path):
  folder, _ = made
  before = {name: (folder / name).read_bytes() for name in ("input.png", "picture.json", "original.png")}
  other = sample_photos.write_photo(sample_photos.draw_truth(4, 0, "a blue cone"), 64, tmp_path / "house.png")
  assert "differs from the file" in refused(command, *flags_of, f"--config.image={other}", f"--workdir={folder}",
                                            config=image_config)
  assert "config.seed=9" in refused(command, *flags_of, f"--config.image={other}", f"--workdir={folder}",
                                    "--config.seed=9", config=image_config)
  assert all((folder / name).read_bytes() == held for name, held in before.items())


def refused(command, *arguments, config):
  status, _, err = command(*config, *arguments)
  assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
  return err


PIXELS = {"empty.png": np.zeros((64, 64, 4), np.uint8), "grey.png": np.full((64, 64, 3), 90, np.uint8),
          "dot.png": np.full((1, 1, 4), 255, np.uint8),
          "noise.png": np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)}


@pytest.mark.skipif(importlib.util.find_spec("rembg") is not None, reason="with rembg noise may show an object")
def test_a_background_that_is_not_plain_wants_rembg(command, image_config, flags_of, tmp_path):
  message = refused_picture(command, image_config, flags_of, tmp_path, "noise.png")
  assert "neither transparent nor plain" in message and "rembg" in message


@pytest.mark.parametrize("name", ["text.png", "nowhere.png", "empty.png", "grey.png", "dot.png"])
def test_what_is_no_picture_is_refused_before_there_is_a_folder(command, image_config, flags_of, tmp_path, name):
  message = refused_picture(command, image_config, flags_of, tmp_path, name)
  assert name in message and (name not in ("empty.png", "grey.png") or "shows no object" in message)


def refused_picture(command, image_config, flags_of, tmp_path, name):
  if name in PIXELS:
    Image.fromarray(PIXELS[name]).save(tmp_path / name)
  (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
  folder = tmp_path / "run"
  message = refused(command, *flags_of, f"--config.image={tmp_path / name}", f"--workdir={folder}", config=image_config)
  assert not folder.exists()
  return message


def test_a_bad_map_is_refused_before_there_is_a_folder(command, image_config, flags_of, picture, tmp_path):
  Image.fromarray(np.full((64, 32), 90, np.uint8)).save(tmp_path / "depth.png")
  message = refused(command, *flags_of, f"--config.image={picture}", f"--workdir={tmp_path / 'run'}",
                    f"--config.picture.depth={tmp_path / 'depth.png'}", "--config.loss.depth=1.0",
                    config=image_config)
  assert "depth.png" in message and "its photo" in message and not (tmp_path / "run").exists()


def test_a_camera_that_the_prior_has_never_seen(command, image_config, flags_of, picture, tmp_path):
  message = refused(command, *flags_of, f"--config.image={picture}", f"--workdir={tmp_path / 'run'}",
                    "--config.camera.distance=(3.8, 3.8)", config=image_config)
  assert "config.camera.distance=(3.8, 3.8)" in message and "(2.7, 2.7)" in message


@pytest.mark.parametrize("settings, problem", [
    (["--config.words.prior=zero123"], "config.words.prior='zero123' is no prior that is conditioned on text"),
    (["--config.words.prior=imagen"], "config.words.prior='imagen' is no prior that is conditioned on text"),
    (["--config.words.path=/nowhere/at/all"], "/nowhere/at/all"),
    (["--config.words.prior=shapeworld", "--config.prompt=a hamburger"], "config.prompt='a hamburger'")])
def test_the_second_prior_is_checked_first(command, image_config, flags_of, picture, tmp_path, settings, problem):
  message = refused(command, *flags_of, f"--config.image={picture}", f"--workdir={tmp_path / 'run'}",
                    "--config.prompt=a red house", "--config.loss.words=1.0", *settings, config=image_config)
  assert problem in message and "config.prior." not in message.replace("config.prior.allow_unknown_words", "")


def test_priors_of_the_other_kind_are_refused(command, image_config, flags_of, picture, tiny_prior, tiny_view_prior,
                                              tmp_path):
  of_text = refused(command, *flags_of, f"--config.image={picture}", f"--workdir={tmp_path}",
                    config=(f"--config=configs/image.py:{tiny_prior}",))
  assert "is conditioned on text" in of_text
  of_images = refused(command, *flags_of, "--config.prompt=a red cube", f"--workdir={tmp_path}",
                      config=(f"--config=configs/text.py:{tiny_view_prior}",))
  assert "is conditioned on an image" in of_images
