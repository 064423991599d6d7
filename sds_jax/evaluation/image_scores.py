"""Scores of an object made from a sample photo, against the exact scene of the photo.

The pose is known, so no pose is searched for. In the run the photo's camera stands at (azimuth, elevation), and the
correct object is the scene turned so that its view from this camera equals the photo. A photo that was moved in its
frame makes the correct object larger or smaller, and moves the object in the plane through the origin that faces the
photo's camera. A camera of the run that differs from the camera of the sample photos has the same effects. Perspective
makes both exact to first order only (`shapeworld.sample_photos.cameras_to_scene_frame`).

An object has the colours of its photo, light included, so its colours are compared with the scene in the photo's light.
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
from sds_jax.tasks.outputs import ObjectGenerator
from sds_jax.views import cameras

BEST_PSNR = 100.0
"""Decibels of two equal images, in place of infinity, which JSON does not have."""


def hidden_views(azimuth: float) -> np.ndarray:
  """Returns which scoring views show the side away from the photo, bool [16].

  Such views are over 90 degrees of azimuth from the photo's `azimuth` in radians.
  """
  position = np.asarray(scores.scoring_cameras().position)
  # The cosine is negative beyond 90 degrees on either side, without a case for the wrap at 360.
  return np.cos(np.arctan2(position[:, 1], position[:, 0]) - azimuth) < 0.0


def score(generator: ObjectGenerator, camera: CameraSettings, state: TrainState, truth: Truth, photo: Photo,
          azimuth: float, elevation: float) -> dict[str, Any]:
  """Returns all scores of one object.

  Args:
    generator: of the object.
    camera: settings of the training cameras, which have one distance and one field of view.
    state: of the object.
    truth: scene and camera of the photo.
    photo: as the run has read the file; its frame says how the photo was moved.
    azimuth, elevation: of the photo's camera in the run, radians. If the run used an elevation other than the truth's,
      the scene stays upright, and the scores include the effect of the wrong elevation.

  Returns:
    reference_psnr (the photo and a render from its camera, on white at 64x64, dB, at most BEST_PSNR), silhouette_iou
    (mean over 16 views), worst_view_iou, seen_iou and unseen_iou (means over the views within 90 degrees of azimuth of
    the photo's camera, and over all other views), volume_iou (of an object with a density), colour_error (mean
    absolute difference of RGB where scene and object overlap; 1 without overlap), colours_right and
    unseen_colours_right (whether the mean colour of each part, in all views and in the unseen views, is nearest in
    direction to the colour in the caption; a part that is hidden in all those views does not count), empty, full.
  """
  distance, fov_y = camera.distance[0], math.radians(camera.fov_deg[0])
  pose = sample_photos.PhotoPose(azimuth, elevation, distance, fov_y, photo.frame.scale, photo.frame.shift)
  exact, reference = sample_photos.truth_scene(truth), cameras.orbit(azimuth, elevation, distance, fov_y)
  shots = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), scores.scoring_cameras(),
                       jax.tree.map(lambda leaf: leaf[None], reference))
  rgb, opacity = scores.object_views(generator, state, shots)
  photo_view = rgb[-1] + (1.0 - opacity[-1][..., None])  # on white
  rgb, opacity = rgb[:-1], opacity[:-1]
  shots = sample_photos.cameras_to_scene_frame(scores.scoring_cameras(), truth, pose)
  light = np.array(truth.light, np.float32)
  lit, inside = scores.traced(exact, shots, light, truth.ambient)
  # The bare albedo, by which the parts can be told apart.
  albedo, _ = scores.traced(exact, shots)
  by_view, hidden = scores.iou(inside, opacity > 0.5), hidden_views(azimuth)
  overlap = inside & (opacity > 0.5)
  # Renders are over black: the division undoes the product with the opacity.
  colour = rgb / np.maximum(opacity, 1e-3)[..., None]
  error = float(np.abs(colour - lit)[overlap].mean()) if overlap.any() else 1.0
  spec = captions.parse(truth.caption)
  volume, filled = {}, 0.0
  if generator.density:
    points, solid, filled = scores.solid_points(generator, state)
    points = sample_photos.points_to_scene_frame(points, truth, pose)
    volume = dict(volume_iou=scores.volume_iou(exact, points, solid))
  return dict(
      reference_psnr=psnr(photo_view, photo),
      silhouette_iou=float(by_view.mean()), worst_view_iou=float(by_view.min()),
      seen_iou=float(by_view[~hidden].mean()), unseen_iou=float(by_view[hidden].mean()),
      **volume, colour_error=error, colours_right=_colours_right(spec, albedo, inside, overlap, colour),
      unseen_colours_right=_colours_right(spec, albedo[hidden], inside[hidden], overlap[hidden], colour[hidden]),
      **scores.flags(opacity, filled))


def psnr(image: np.ndarray, photo: Photo) -> float:
  """Returns the peak signal to noise ratio of a render, in dB.

  The render [S, S, 3] is on white; the photo is resized to S.
  """
  error = np.mean((image - resize_square(photo.rgb, len(image))) ** 2)
  # The floor keeps equal images at BEST_PSNR instead of infinity.
  return -10.0 * math.log10(max(float(error), 10.0 ** (-BEST_PSNR / 10.0)))


def _colours_right(spec: captions.Spec, albedo: np.ndarray, inside: np.ndarray, overlap: np.ndarray,
                   colour: np.ndarray) -> bool:
  """Returns whether each visible part of the scene has the right colour.

  The object's mean colour over the part must be nearest to the part's colour.

  Args:
    spec: of the caption; names the colour of each part.
    albedo: [V, S, S, 3] of the scene.
    inside: [V, S, S], the mask of the scene.
    overlap: [V, S, S], where scene and object overlap.
    colour: [V, S, S, 3] of the object.
  """
  right = []
  for name, _ in spec.parts:
    # Within 0.05 of the named colour lies the body of a part, without painted accents.
    part = inside & (np.abs(albedo - np.asarray(solids.COLOURS[name], np.float32)).max(-1) < 0.05)
    if part.any():
      right.append((part & overlap).any() and colour_name(colour[part & overlap].mean(0)) == name)
  return bool(right) and all(right)
