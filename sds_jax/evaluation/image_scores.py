"""Scores of an object made from a sample picture, against the exact scene that the picture shows.

The pose is known, so there is no search: in the run the picture's camera stands at (azimuth, elevation), and the right
object is the scene turned so that it looks from there as it does in the picture. A picture that was moved in its frame
makes the right object larger or smaller, and moves it in the plane through the origin that faces the picture's camera,
and so does a camera of the run that is another than the sample pictures'; perspective makes that exact to first order
only (`shapeworld.sample_photos.cameras_to_scene_frame`).

An object has the colours of its picture, light included. They are compared with the scene in the picture's light.
"""
from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.evaluation import scores
from sds_jax.io.photos import Photo, resize_square
from sds_jax.shapeworld import captions, sample_photos, solids
from sds_jax.shapeworld.sample_photos import Truth
from sds_jax.shapeworld.score_prior import colour_name
from sds_jax.training.state import TrainState
from sds_jax.settings.camera import CameraSettings
from sds_jax.generators.field import FieldGenerator
from sds_jax.views import cameras

BEST_PSNR = 100.0
"""Decibels that two equal pictures are said to have, for want of infinity."""


def unseen(azimuth: float) -> np.ndarray:
  """Which of the scoring views, bool [16], stand more than 90 degrees of azimuth away from the picture's (radians)."""
  position = np.asarray(scores.scoring_cameras().position)
  return np.cos(np.arctan2(position[:, 1], position[:, 0]) - azimuth) < 0.0


def score(generator: FieldGenerator, camera: CameraSettings, state: TrainState, truth: Truth, picture: Photo, azimuth: float,
          elevation: float) -> dict[str, Any]:
  """All scores of one object.

  Args:
    generator: of the object.
    camera: settings of the training cameras, which have one distance and one field of view.
    state: of the object.
    truth: about the picture.
    picture: as the run has read it; its frame says how it was moved.
    azimuth, elevation: of the picture's camera in the run, radians. Where the run was told another elevation than the
      truth's, the scene stays upright, and the object is judged for what that did to it.

  Returns:
    reference_psnr (the picture and a render from its camera, on white at 64x64, dB, at most BEST_PSNR), silhouette_iou
    (mean over 16 views), worst_view_iou, seen_iou and unseen_iou (means over the views within 90 degrees of azimuth of
    the picture's, and over the others), volume_iou, colour_error (mean absolute difference of RGB where scene and
    object overlap; 1 where they don't), colours_right and unseen_colours_right (whether the mean colour of each part,
    in all views and in the unseen ones, is nearest in direction to that which the caption names; a part that is hidden
    in all those views is not asked for), empty, full.
  """
  distance, fov_y = camera.distance[0], math.radians(camera.fov_deg[0])
  pose = sample_photos.PhotoPose(azimuth, elevation, distance, fov_y, picture.frame.scale, picture.frame.shift)
  exact, reference = sample_photos.truth_scene(truth), cameras.orbit(azimuth, elevation, distance, fov_y)
  shots = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), scores.scoring_cameras(),
                       jax.tree.map(lambda leaf: leaf[None], reference))
  rgb, opacity = scores.object_views(generator, state, shots)
  at_picture = rgb[-1] + (1.0 - opacity[-1][..., None])  # on white
  rgb, opacity = rgb[:-1], opacity[:-1]
  shots = sample_photos.cameras_to_scene_frame(scores.scoring_cameras(), truth, pose)
  light = np.array(truth.light, np.float32)
  lit, inside = jax.device_get(_traced(exact, shots, light, np.float32(truth.ambient)))
  albedo, _ = jax.device_get(_traced(exact, shots, light, np.float32(1.0)))
  by_view, hidden = scores.iou(inside, opacity > 0.5), unseen(azimuth)
  points, solid, filled = scores.solid_points(generator, state)
  seen = inside & (opacity > 0.5)
  colour = rgb / np.maximum(opacity, 1e-3)[..., None]
  error = float(np.abs(colour - lit)[seen].mean()) if seen.any() else 1.0
  spec = captions.parse(truth.caption)
  return dict(
      reference_psnr=psnr(at_picture, picture),
      silhouette_iou=float(by_view.mean()), worst_view_iou=float(by_view.min()),
      seen_iou=float(by_view[~hidden].mean()), unseen_iou=float(by_view[hidden].mean()),
      volume_iou=scores.volume_iou(exact, sample_photos.points_to_scene_frame(points, truth, pose), solid),
      colour_error=error, colours_right=_colours_right(spec, albedo, inside, seen, colour),
      unseen_colours_right=_colours_right(spec, albedo[hidden], inside[hidden], seen[hidden], colour[hidden]),
      **scores.flags(opacity, filled))


def psnr(image: np.ndarray, picture: Photo) -> float:
  """Peak signal to noise ratio in dB of a render [S, S, 3] on white and a picture, which is brought to its size."""
  error = np.mean((image - resize_square(picture.rgb, len(image))) ** 2)
  return -10.0 * math.log10(max(float(error), 10.0 ** (-BEST_PSNR / 10.0)))


_traced = jax.jit(scores.traced)


def _colours_right(spec: captions.Spec, albedo: np.ndarray, inside: np.ndarray, seen: np.ndarray,
                   colour: np.ndarray) -> bool:
  """Whether the object's mean colour, where the scene shows a part and the object something, is that part's.

  Args:
    albedo: [V, S, S, 3] of the scene; inside: [V, S, S] where it is.
    seen: [V, S, S] where scene and object overlap; colour: [V, S, S, 3] of the object.
  """
  right = []
  for name, _ in spec.parts:
    part = inside & (np.abs(albedo - np.asarray(solids.COLOURS[name], np.float32)).max(-1) < 0.05)
    if part.any():
      right.append((part & seen).any() and colour_name(colour[part & seen].mean(0)) == name)
  return bool(right) and all(right)
