"""Fronts that an object shows where it has none: the Janus problem, measured against the exact scene.

A view shows the front if, of all views of the exact scene, one near its front resembles the view most.
The number means nothing for an object of a wrong colour, which the scores of colours tell.
"""
from __future__ import annotations

import math

import numpy as np

from sds_jax.types import Camera
from sds_jax.views import cameras

AZIMUTHS = 24
ELEVATION_DEG, DISTANCE, FOV_DEG = 15.0, 2.7, 46.0
BEYOND_DEG, WITHIN_DEG = 90.0, 60.0
"""Views further than BEYOND_DEG from the front have none; a view within WITHIN_DEG of the front shows it clearly."""


def ring() -> Camera:
  """Returns cameras [24] around the object at one elevation; the first faces its front, at +x."""
  azimuth = np.arange(AZIMUTHS) * math.tau / AZIMUTHS
  return cameras.orbits(azimuth, np.full(AZIMUTHS, math.radians(ELEVATION_DEG)), DISTANCE, math.radians(FOV_DEG))


def false_fronts(views: np.ndarray, exact: np.ndarray) -> float:
  """Returns the share of views away from the front that show a front.

  Args:
    views: albedo over black of the object from the cameras of `ring`, [24, H, W, 3] in [0, 1].
    exact: the same of the exact scene.
  """
  off_front = np.abs((np.arange(AZIMUTHS) * 360.0 / AZIMUTHS + 180.0) % 360.0 - 180.0)
  # [i, j]: mean absolute difference of the object's view i and the scene's view j.
  difference = np.abs(views[:, None] - exact[None]).mean((-3, -2, -1))
  resembled = off_front[difference.argmin(1)]
  return float((resembled <= WITHIN_DEG)[off_front > BEYOND_DEG].mean())
