"""Scores of samples, on traced images with known content."""
import dataclasses
import math

import jax
import numpy as np
import pytest
from PIL import Image

from sds_jax.shapeworld import captions, scenes, score_prior, tracer
from sds_jax.views import cameras

SILHOUETTE = jax.jit(tracer.silhouette)
CAMERA = cameras.orbit(math.radians(35.0), math.radians(20.0), 2.7, math.radians(46.0))


@pytest.fixture(scope="module")
def photograph():
  """Returns (caption, ambient, background) -> the image [64, 64, 3] of a perfect prior."""
  draw = jax.jit(tracer.render)  # with arguments alone, it is the program of tests/shapeworld/test_tracer.py
  light = np.asarray(CAMERA.position) + np.array([0.0, 1.0, 1.0], np.float32)
  return lambda caption, ambient=0.5, background=(0.8, 0.82, 0.85): np.asarray(draw(
    scenes.scene_from_caption(caption), CAMERA, light, ambient, 1.0 - ambient, np.array(background, np.float32))[0])


def verdict(image, caption):
  scores = score_prior.score_sample(image, captions.parse(caption), CAMERA)
  return scores["colour"], scores["shape"]


@pytest.mark.parametrize("caption", [
  "a red cube", "a pink sphere", "an orange torus", "a blue house", "a cyan mug", "a yellow snowman", "a purple chair",
  "a green cone on top of a blue cylinder", "a yellow capsule on top of a red pyramid"])
@pytest.mark.parametrize("ambient", [1.0, 0.4])
def test_a_true_image_is_right(photograph, caption, ambient):
  assert verdict(photograph(caption, ambient), caption) == (True, True)


@pytest.mark.parametrize("asked, drawn, expected", [
  ("a red cube", "a blue cube", (False, True)), ("a pink sphere", "a purple sphere", (False, True)),
  ("a red cube", "a red torus", (True, False)), ("a red cone", "a red sphere", (True, False)),
  ("a green cone on top of a blue cylinder", "a blue cone on top of a green cylinder", (False, True)),
  ("a green cone on top of a blue cylinder", "a green sphere on top of a blue cylinder", (True, False)),
  ("a green cone on top of a blue cylinder", "a blue cylinder", (False, False))])
def test_a_wrong_image_is_wrong(photograph, asked, drawn, expected):
  assert verdict(photograph(drawn), asked) == expected


def test_nothing_and_noise_are_wrong():
  grey = np.full((64, 64, 3), 0.7, np.float32)
  noise = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
  assert verdict(grey, "a red cube") == (False, False)
  assert verdict(noise, "a red cube")[1] is False


@pytest.mark.parametrize("caption, background", [
  ("a red cube", (0.9, 0.9, 0.9)), ("a pink capsule", (0.8, 0.6, 0.6)), ("a blue cone", (1.0, 1.0, 1.0)),
  ("a yellow torus on top of a purple cube", (0.9, 0.9, 0.6))])
def test_foreground_is_the_silhouette_whatever_its_contrast(photograph, caption, background):
  truth = np.asarray(SILHOUETTE(scenes.scene_from_caption(caption), CAMERA)) > 0.5
  mask = score_prior.foreground(photograph(caption, background=background))
  assert (mask & truth).sum() / (mask | truth).sum() > 0.92
  assert 0.94 < mask.sum() / truth.sum() < 1.08


def test_alternatives_differ_in_one_shape():
  single = score_prior.alternatives(captions.parse("a red cube"))
  assert len(single) == 10 and all(spec.parts[0][0] == "red" and spec.parts[0][1] != "cube" for spec in single)
  spec = captions.parse("a green cone on top of a blue cylinder")
  double = score_prior.alternatives(spec)
  assert len(double) == 12
  assert all(sum(a != b for a, b in zip(other.parts, spec.parts)) == 1 for other in double)
  assert all(captions.parse(captions.caption(other)) == dataclasses.replace(other) for other in double)


@pytest.mark.parametrize("count, size", [(3, (3 * 4, 4)), (16, (16 * 4, 4)), (40, (16 * 4, 2 * 4))])
def test_a_sheet_has_whole_rows(tmp_path, count, size):
  images = np.linspace(0.0, 1.0, count)[:, None, None, None] * np.ones((1, 4, 4, 3))
  score_prior.write_sheet(tmp_path / "sheet.png", images)
  with Image.open(tmp_path / "sheet.png") as sheet:
    assert sheet.size == size
    pixels = np.asarray(sheet)[::4, ::4, 0] / 255.0
  np.testing.assert_allclose(pixels.reshape(-1), images[:pixels.size, 0, 0, 0], atol=0.003)


def test_cameras_are_low_enough_to_distinguish_shapes():
  views = jax.jit(score_prior.draw_cameras, static_argnums=1)(jax.random.key(0), 64)
  position = np.asarray(views.position)
  elevation = np.degrees(np.arcsin(position[:, 2] / np.linalg.norm(position, axis=-1)))
  assert position.shape == (64, 3) and elevation.min() > -3.0 and elevation.max() < 53.0
