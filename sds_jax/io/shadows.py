"""Shadows on a plain ground and soft edges of an object, which are neither object nor background."""
from __future__ import annotations

import numpy as np
from scipy import ndimage

DARKEST = 0.2
"""Smallest brightness of a shadow, as a share of the ground's."""
HUE = 0.035
"""Largest difference of a shadow from a darker shade of the ground's colour, in the worst channel."""
SLOPE, SLOPES = 20.0, (0.008, 0.05)
"""Largest change of brightness from pixel to pixel in a shadow, times the pixels of the longer side; and its range.
A shadow on a photo of 1024 pixels rises from its edge over at least 50 pixels of full contrast; edges of objects take
a few pixels."""
_REACH, _STEP_UP = 8, 0.03
"""Pixels up to the object's edge that the search for smooth parts leaves out, since the edge disturbs them; and the
largest difference from pixel to pixel on the way there, in the worst channel."""
_THICK = 128
"""A shadow has a place as deep as the longer side of the photo divided by this; the soft edge of an object has none."""
_LEAST = 2e-3
"""Share of the object's area from which a shadow counts."""
_NEUTRAL = 0.25
"""Largest share of the object that may have a shade of the ground's colour where a shadow is removed."""
_DOUBTFUL, _DOUBTFUL_HUE = 0.03, 0.08
"""Share of the object's area from which a note tells of a part that may be a shadow, and the largest difference of
that part from a darker shade of the ground's colour, as HUE: other lights may tint a shadow."""
_CUT_OUT = "give a cut-out: a PNG with a transparent background"

_EVERYWHERE = np.ones((3, 3), bool)


def find_shadow(rgb: np.ndarray, colour: np.ndarray,
                background: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
  """Finds the shadow that an object throws on its plain ground.

  A shadow is a darker shade of the ground's colour, reaches the background without an edge, and changes smoothly. Where
  the object itself has a shade of the ground's colour, as a grey thing on white, the two cannot be told apart: then
  nothing is removed, and a note says so.

  Args:
    rgb: photo [H, W, 3] in [0, 1].
    colour: [3], the ground's.
    background: [H, W] bool, the ground without shadow.

  Returns:
    (mask [H, W] of the shadow, or None without one; notes for the user).
  """
  object_area = int((~background).sum())
  if colour.max() < DARKEST or not object_area:
    return None, ()
  # The factor s that brings s * colour nearest to the pixel (least squares).
  shade = (rgb @ colour / (colour @ colour)).astype(np.float32)
  # Up to 1.02: noise makes a part of the ground brighter than its median colour.
  darker = (shade >= DARKEST) & (shade <= 1.02)
  hue = np.abs(rgb - shade[..., None] * colour).max(-1)
  like_ground, tinted = darker & (hue <= HUE), darker & (hue <= _DOUBTFUL_HUE) & ~background
  veiled = like_ground & ~background
  if veiled.sum() < _LEAST * object_area:
    return None, _doubt(tinted, object_area)
  side = max(shade.shape)
  # The blur of 1.5 pixels keeps noise from counting as slope.
  smooth = ndimage.gaussian_gradient_magnitude(shade, 1.5, mode="nearest") <= np.clip(SLOPE / side, *SLOPES)
  region = _to_the_edge(rgb, _reached(background, background | veiled & smooth))
  shadow = region & ~background
  labels, count = ndimage.label(shadow, _EVERYWHERE)
  # A thin band along the object is its soft edge and no shadow (`_THICK`).
  depth = ndimage.maximum(ndimage.distance_transform_edt(shadow), labels, np.arange(count + 1))
  shadow &= (np.asarray(depth) >= max(3, side / _THICK))[labels]
  rest = ~(background | shadow)
  left = int(rest.sum())
  if shadow.sum() < _LEAST * object_area:
    return None, _doubt(tinted, object_area)
  # Without a rim of 3 pixels, whose colours are mixed with the ground's.
  core = ndimage.binary_erosion(rest, _EVERYWHERE, iterations=3)
  neutral = (like_ground & core).sum() / max(int(core.sum()), 1)
  if left < 0.1 * object_area or not core.any() or neutral > _NEUTRAL:
    return None, (f"a smooth darker part of the ground's colour ({shadow.sum() / object_area:.0%} of what is kept) may "
                  f"be the object's shadow, and is kept; if it is one, {_CUT_OUT}",)
  note = (f"a shadow ({shadow.sum() / left:.0%} of the object's area) is removed with the background; if it is a part "
          f"of the object, {_CUT_OUT}")
  return shadow, (note, *_doubt(tinted & rest, left))


def _doubt(veiled: np.ndarray, area: int) -> tuple[str, ...]:
  """Returns a note on large parts that may be a shadow.

  Such parts have the ground's colour and are no smooth shadow.
  """
  share = ndimage.binary_opening(veiled, _EVERYWHERE, iterations=2).sum() / max(area, 1)
  return (f"a darker part of the ground's colour with a sharp edge ({share:.0%} of the object) is kept; if it is a "
          f"shadow, {_CUT_OUT}",) if _DOUBTFUL < share < 0.9 else ()


def _to_the_edge(rgb: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Returns a region grown by up to _REACH pixels.

  Each new pixel has nearly the colour of its neighbours in the region.
  """
  if region.all():
    return region
  # Only the box around the object: the filters of the loop need not run over the whole photo.
  rows, columns = (slice(max(0, places.min() - 2), places.max() + 3) for places in np.nonzero(~region))
  colours, inside = rgb[rows, columns], region[rows, columns].copy()
  for _ in range(_REACH):
    weight = ndimage.uniform_filter(inside.astype(np.float32), 3, mode="nearest")
    nearby = ndimage.uniform_filter(colours * inside[..., None], (3, 3, 1), mode="nearest")
    nearby = nearby / np.maximum(weight, 1e-6)[..., None]
    grown = ~inside & (weight > 1e-3) & (np.abs(colours - nearby).max(-1) <= _STEP_UP)
    if not grown.any():
      break
    inside |= grown
  result = region.copy()
  result[rows, columns] = inside
  return result


def _reached(seed: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns the parts of a mask that hold a pixel of the seed."""
  labels, count = ndimage.label(mask)
  keep = np.zeros(count + 1, bool)
  keep[np.unique(labels[seed & mask])] = True
  keep[0] = False
  return keep[labels]


def extend(rgb: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Returns the photo [H, W, 3] with a region's colours extended.

  Each pixel outside of the region becomes the nearest pixel well within the region.
  """
  # Two pixels inside, because the region's edge is mixed with the object. The photo's border is no such edge.
  within = ndimage.binary_erosion(region, _EVERYWHERE, iterations=2, border_value=1)
  within = within if within.any() else region
  rows, columns = ndimage.distance_transform_edt(~within, return_distances=False, return_indices=True)
  return np.where(region[..., None], rgb, ndimage.uniform_filter(rgb, (3, 3, 1))[rows, columns])


_SOFT, _RISE, _STEP, _PLATEAU = 4, 0.5, 3, 0.04
"""An edge is soft if its rise takes more than _SOFT pixels and begins below _RISE of its height. The rise ends where
the next _STEP pixels add less than _PLATEAU of the height."""


def soft_edges(difference: np.ndarray, solid: np.ndarray, opacity: np.ndarray) -> np.ndarray:
  """Returns the opacity with the soft parts of the object's edge.

  Along the inward normal of each pixel at the edge, the difference from the background rises as the object covers more
  of a pixel. Where the rise is long, as out of focus, the opacity is the difference divided by that at the rise's end.

  Args:
    difference: [H, W], of each pixel from the background, in the worst channel.
    solid: [H, W] bool, all pixels that differ from the background.
    opacity: [H, W] float32, for sharp edges.
  """
  rim = solid & ~ndimage.binary_erosion(solid, _EVERYWHERE, border_value=1)
  if not rim.any():
    return opacity
  reach = int(np.clip(max(solid.shape) // 12, 8, 96))
  rows, columns = (slice(max(0, places.min() - 4), places.max() + 5) for places in np.nonzero(solid))
  part, height = solid[rows, columns], ndimage.gaussian_filter(difference[rows, columns], 1.0, mode="nearest")
  y, x = np.nonzero(rim[rows, columns])
  # Blurred before the Sobel filter: a mask's staircase would give normals in eight directions only.
  inward = ndimage.gaussian_filter(part.astype(np.float32), 3.0, mode="nearest")
  normal = np.stack([ndimage.sobel(inward, axis)[y, x] for axis in (0, 1)])
  normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-9)
  steps = np.arange(reach + _STEP + 1)
  profile = ndimage.map_coordinates(height, [start[:, None] + along[:, None] * steps for start, along in
                                             zip((y, x), normal)], order=1, mode="nearest")
  ends = profile[:, _STEP:] - profile[:, :-_STEP] < _PLATEAU * profile[:, :-_STEP]
  # argmax wants an end in every row; a profile that rises to the last place does not count as soft below.
  ends[:, 0], ends[:, -1] = False, True
  length = ends.argmax(1)
  top = profile[np.arange(len(y)), length + _STEP]
  soft = (length > _SOFT) & (length < reach) & (profile[:, 1] < _RISE * top)
  # So few long profiles come from corners and noise and not from a blurred edge.
  if soft.mean() < 0.02:
    return opacity
  # Neighbours along the edge agree on length and height, since single profiles are disturbed by noise and corners.
  weight = np.zeros(part.shape, np.float32)
  lengths, tops = weight.copy(), weight.copy()
  weight[y, x], lengths[y, x], tops[y, x] = 1.0, np.where(soft, length, 0), np.where(soft, top, 0.0)
  weight, lengths, tops = (ndimage.gaussian_filter(values, 4.0)[y, x] for values in (weight, lengths, tops))
  chosen = np.zeros(part.shape, np.float32)
  chosen[y, x] = soft
  share = ndimage.gaussian_filter(chosen, 4.0)[y, x] / weight
  lengths, tops = (values / np.maximum(share * weight, 1e-6) for values in (lengths, tops))
  depth, (near_y, near_x) = ndimage.distance_transform_edt(~rim[rows, columns], return_indices=True)
  number = np.zeros(part.shape, np.int64)
  number[y, x] = np.arange(len(y))
  nearest = number[near_y, near_x]
  band = part & (share[nearest] > 0.5) & (depth <= lengths[nearest] + 1)
  softened = np.clip(difference[rows, columns] / np.maximum(tops[nearest], 1e-3), 0.0, 1.0)
  result = opacity.copy()
  result[rows, columns] = np.where(band, softened, result[rows, columns])
  return result.astype(np.float32)
