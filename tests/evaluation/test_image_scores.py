"""Tests scores of objects made from a photo, where the object is the truth, or wrong in one known way."""
import math
import types

import numpy as np
import pytest

from sds_jax.evaluation import image_scores, scores
from sds_jax.io.photos import Frame, Photo
from sds_jax.shapeworld import sample_photos
from sds_jax.settings.camera import CameraSettings

AZIMUTH, ELEVATION = math.radians(-50.0), math.radians(20.0)
"""Viewpoint of the photo in the run."""
TRUTH = sample_photos.Truth("a green cone on top of a blue cylinder", 100.0, 20.0, (0.5, 1.1, 0.4), 1.0, 0.9,
                       (0.03, -0.02, 0.01))
HOUSE, BALL = TRUTH._replace(caption="a yellow house"), TRUTH._replace(caption="an orange sphere", ambient=0.4)


def photo_of(truth, frame=Frame()):
  """Returns the photo of the truth's camera, as a run reads the file of an unmoved photo."""
  image = sample_photos.render_photo(truth, 64).astype(np.float32) / 255
  rgb, opacity = image[..., :3], image[..., 3]
  return Photo(rgb * opacity[..., None] + 1 - opacity[..., None], opacity, frame)


@pytest.fixture(scope="module")
def judge(small_scores, scene_generator, object_of):
  """Returns a function (truth, errors of the object) -> scores."""
  def score(truth=TRUTH, turn=0.0, shown=None, photo=None, camera=(2.7, 46.0), **changes):
    state = object_of(sample_photos.truth_scene(shown or truth), **{
      "angle": AZIMUTH - math.radians(truth.azimuth_deg + turn), "light": truth.light, "ambient": truth.ambient,
      **changes})
    shot = CameraSettings(distance=(camera[0],) * 2, fov_deg=(camera[1],) * 2)
    return image_scores.score(scene_generator, shot, state, truth, photo or photo_of(truth), AZIMUTH, ELEVATION)

  return score


def test_truth_scores_well(judge):
  scored = judge()
  assert scored["silhouette_iou"] > 0.95 and scored["worst_view_iou"] > 0.9 and scored["volume_iou"] > 0.9
  assert min(scored["seen_iou"], scored["unseen_iou"]) > 0.94 and scored["reference_psnr"] > 25.0
  assert scored["colours_right"] and scored["unseen_colours_right"] and scored["colour_error"] < 0.03
  assert not scored["empty"] and not scored["full"]
  assert all(type(value) in (float, bool) for value in scored.values())


def test_a_turned_object_scores_worse(judge):
  """Checks a house turned by a quarter: no rotation is searched for."""
  right, side = judge(HOUSE), judge(HOUSE, turn=90.0)
  assert right["silhouette_iou"] > 0.95 and right["reference_psnr"] > 21.0
  assert side["silhouette_iou"] < 0.93 and side["volume_iou"] < 0.85
  assert side["reference_psnr"] < right["reference_psnr"] - 3.0


def test_a_back_of_the_wrong_colour(judge):
  """Checks that a wrong back lowers only the scores of unseen views and of colour."""
  towards = (math.cos(AZIMUTH), math.sin(AZIMUTH), 0.0)
  scored = judge(HOUSE, behind=towards, back_colour=(0.9, 0.06, 0.06))
  assert not scored["unseen_colours_right"] and scored["reference_psnr"] > 21.0 and scored["silhouette_iou"] > 0.95
  assert scored["colour_error"] > 0.1


def test_colours_include_the_light(judge):
  """Checks that an object of lit colours scores better than one of bare colours; the names of both are right."""
  lit, bare = judge(BALL), judge(BALL, ambient=1.0)
  assert lit["colour_error"] < 0.03 and lit["reference_psnr"] > 25.0 and lit["colours_right"]
  assert bare["colour_error"] > 0.1 and bare["reference_psnr"] < 22.0 and bare["colours_right"]


def test_exchanged_colours(judge):
  scored = judge(shown=TRUTH._replace(caption="a blue cone on top of a green cylinder"))
  assert not scored["colours_right"] and not scored["unseen_colours_right"] and scored["silhouette_iou"] > 0.95
  assert scored["colour_error"] > 0.2


def test_a_moved_photo_moves_the_correct_object(judge):
  """Checks an object 0.8 times as large, moved by a share of the frame, which measures 2.29 at the origin."""
  frame = Frame(0.8, (0.08, -0.05), 1.0)
  right = np.array([-math.sin(AZIMUTH), math.cos(AZIMUTH), 0.0])
  up = np.array([-math.sin(ELEVATION) * math.cos(AZIMUTH), -math.sin(ELEVATION) * math.sin(AZIMUTH),
                 math.cos(ELEVATION)])
  move = 2 * 2.7 * math.tan(math.radians(23.0)) * (0.08 * right + 0.05 * up)
  photo = photo_of(TRUTH, frame)
  scored = judge(scale=0.8, move=tuple(move), photo=photo)
  assert scored["silhouette_iou"] > 0.93 and scored["volume_iou"] > 0.88 and scored["colours_right"]
  assert scored["colour_error"] < 0.03
  assert judge(photo=photo)["silhouette_iou"] < 0.7


def test_empty_and_full_objects_are_flagged(judge):
  nothing, everything = judge(density=0.0), judge(fog=50.0)
  assert nothing["empty"] and not nothing["full"] and nothing["silhouette_iou"] == nothing["volume_iou"] == 0.0
  assert not nothing["colours_right"] and not nothing["unseen_colours_right"] and nothing["colour_error"] == 1.0
  assert everything["full"] and not everything["empty"] and everything["silhouette_iou"] < 0.6


def test_hidden_views_are_behind_the_object():
  """Checks that hidden views differ by over 90 degrees of azimuth; from the opposite side the others are hidden."""
  position = np.asarray(scores.scoring_cameras().position)
  for degrees in (0.0, 77.0, -160.0):
    away = np.abs((np.degrees(np.arctan2(position[:, 1], position[:, 0])) - degrees + 180.0) % 360.0 - 180.0)
    hidden = image_scores.hidden_views(math.radians(degrees))
    assert np.array_equal(hidden, away > 90.0) and 6 <= hidden.sum() <= 10
    assert np.array_equal(image_scores.hidden_views(math.radians(degrees + 180.0)), ~hidden)


def test_another_camera_scales_the_correct_object(judge):
  """Checks an object scaled by 1.34 / 2.29, the ratio of the frame sizes at the origin."""
  scale = 3.8 * math.tan(math.radians(10.0)) / (2.7 * math.tan(math.radians(23.0)))
  scored = judge(camera=(3.8, 20.0), scale=scale)
  assert scored["silhouette_iou"] > 0.93 and scored["volume_iou"] > 0.85 and scored["reference_psnr"] > 16.0
  wrong = judge(camera=(3.8, 20.0))
  assert wrong["silhouette_iou"] < 0.5 and wrong["reference_psnr"] < scored["reference_psnr"] - 3.0


def test_an_object_without_density_has_no_volume(monkeypatch):
  monkeypatch.setattr(scores, "object_views", lambda *_: (np.zeros((17, 64, 64, 3)), np.zeros((17, 64, 64))))
  monkeypatch.setattr(scores, "traced", lambda *_: (np.zeros((16, 64, 64, 3)), np.zeros((16, 64, 64), bool)))
  photo = Photo(np.ones((64, 64, 3), np.float32), np.zeros((64, 64), np.float32), Frame())
  shot = CameraSettings(distance=(2.7, 2.7), fov_deg=(46.0, 46.0))
  generator = types.SimpleNamespace(density=None)
  scored = image_scores.score(generator, shot, None, TRUTH, photo, AZIMUTH, ELEVATION)
  assert scored["empty"] and "volume_iou" not in scored
