"""Removal of a photo's background: by a plain colour, or by the network of the library `rembg`."""
from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import os
import sys
import textwrap
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from sds_jax.io import shadows

TOLERANCE = 0.06
"""Largest difference between a pixel and the plain background's colour, in the worst channel: the noise of JPEG."""
PLAIN_SHARE = 0.9
"""Smallest share of border pixels with the same colour in a plain background; an object may cover the rest."""
SPECK = 1e-3
"""Separate parts with less than this share of the largest part's area are dust."""
_HOLE_NOISE = 4.5 / 255
"""Largest difference between the median of an enclosed hole and the background's colour; the small hole of a ring is
up to four levels off in a JPEG file."""
_HOLE_SHARE = 1e-3
"""Smallest share of the photo's area of a hole: a highlight on the object is smaller."""
_EVERYWHERE = np.ones((3, 3), bool)
NETWORK = "u2net"
"""Name of the rembg network: Apache-2.0, 176 MB. (The default of rembg, bria-rmbg, forbids commercial use.)"""


class MattingError(ValueError):
  """A background that cannot be removed.

  The message has the reason and a remedy, but not the photo's path.
  """


def border_colour(rgb: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the border's colour [3] and the colour's share.

  The share is the share of border pixels with this colour. `rgb` is a photo [H, W, 3] in [0, 1]; the border is two
  pixels wide.
  """
  ring = [rgb[:2], rgb[-2:], rgb[:, :2], rgb[:, -2:]]
  border = np.concatenate([part.reshape(-1, 3) for part in ring])
  # The median ignores an object on less than half of the border.
  colour = np.median(border, axis=0)
  return colour, float((np.abs(border - colour).max(-1) <= TOLERANCE).mean())


def remove_specks(mask: np.ndarray) -> np.ndarray:
  """Removes small parts of a mask [H, W].

  Small parts have less than SPECK of the largest part's area.
  """
  labels, count = ndimage.label(mask, _EVERYWHERE)
  if count <= 1:
    return mask
  areas = np.bincount(labels.ravel())
  areas[0] = 0  # label 0 is the background
  return (areas >= SPECK * areas.max())[labels]


class Matte(NamedTuple):
  """An object without its background.

  Attributes:
    premultiplied: colours times opacity [H, W, 3] float32.
    opacity: [H, W] float32 in [0, 1].
    notes: what was taken for background or kept in doubt, a line each.
  """
  premultiplied: np.ndarray
  opacity: np.ndarray
  notes: tuple[str, ...] = ()


def matte_by_colour(rgb: np.ndarray, colour: np.ndarray) -> Matte:
  """Extracts the object from a photo with a plain background.

  Regions of the background's colour count as background if they reach the border or are holes; holes are flatter and
  larger than the highlights of an object. The smooth shadow of a coloured object counts as background, too
  (`shadows.find_shadow`). Along the edge, two pixels wide, the opacity is the pixel's difference from the background
  divided by the largest difference within two pixels; where the edge is softer, by the difference at the end of its
  rise (`shadows.soft_edges`). This estimate is exact where the object has a single colour near the edge. The
  background's share is subtracted from the colour.

  Args:
    rgb: [H, W, 3] in [0, 1].
    colour: [3], the colour of the background.
  """
  background = _background(rgb, np.abs(rgb - colour).max(-1) <= TOLERANCE, colour)
  shadow, notes = shadows.find_shadow(rgb, colour, background)
  local = colour if shadow is None else shadows.extend(rgb, background | shadow)
  if shadow is not None:
    background = background | shadow
  difference = np.abs(rgb - local).max(-1)
  solid = remove_specks(~background)
  inner = ~ndimage.binary_dilation(~solid, _EVERYWHERE, iterations=2)
  # The edge includes pixels within the tolerance: the object may cover a twentieth of such a pixel.
  edge = ndimage.binary_dilation(solid, _EVERYWHERE) & ~inner
  # The window of 5 reaches two pixels in each direction, where a pixel of the object's own colour lies.
  reference = ndimage.maximum_filter(difference, 5)
  # The floor keeps noise where nothing differs from counting as a covered pixel.
  share = np.clip(difference / np.maximum(reference, TOLERANCE), 0.0, 1.0)
  opacity = np.where(inner, 1.0, np.where(edge, share, 0.0)).astype(np.float32)
  opacity = shadows.soft_edges(difference, solid, opacity)
  # A premultiplied channel above the opacity would be a colour brighter than white.
  premultiplied = np.clip(rgb - (1.0 - opacity[..., None]) * local, 0.0, opacity[..., None])
  return Matte(premultiplied.astype(np.float32), opacity, notes)


def _background(rgb: np.ndarray, similar: np.ndarray, colour: np.ndarray) -> np.ndarray:
  """Returns the mask [H, W] of the background.

  The background is the regions of `similar` [H, W] at the border, and holes.
  """
  # Background regions connect by sides only, object parts by corners, too: a thin diagonal line stays a border.
  labels, count = ndimage.label(similar)
  ring = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
  keep = np.zeros(count + 1, bool)
  keep[ring] = True
  index = np.arange(count + 1)
  areas = np.bincount(labels.ravel(), minlength=count + 1)
  holes = index[1:][~keep[1:] & (areas[1:] >= max(4, _HOLE_SHARE * similar.size))]
  if holes.size:
    # Medians, so that a few pixels at the rim of a hole do not count.
    medians = np.stack([ndimage.median(rgb[..., c], labels, holes) for c in range(3)], axis=-1)
    keep[holes] = np.abs(medians - colour).max(-1) <= _HOLE_NOISE
  # Label 0 is all that differs from the background; an object at the border has put it into `ring`.
  keep[0] = False
  return keep[labels]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
  """Keeps numba from compiling what is imported within.

  rembg imports pymatting, whose functions numba compiles for minutes. `matte_by_network` needs none of them.
  """
  if "numba" in sys.modules or "NUMBA_DISABLE_JIT" in os.environ:
    yield
    return
  os.environ["NUMBA_DISABLE_JIT"] = "1"
  try:
    yield
  finally:
    del os.environ["NUMBA_DISABLE_JIT"]
    # numba has read the variable at its import; a user's own functions in this process are compiled as ever.
    if "numba" in sys.modules:
      sys.modules["numba"].config.DISABLE_JIT = 0


def matte_by_network(rgb: np.ndarray) -> np.ndarray:
  """Computes the object's opacity with `rembg`.

  Photo [H, W, 3] -> opacity [H, W] float32. rembg downloads the network at the first call.

  Raises:
    MattingError: the library is not installed, or the network is neither on disk nor downloadable.
  """
  try:
    # Without onnxruntime, rembg prints a page of advice and calls sys.exit on import.
    with contextlib.redirect_stdout(io.StringIO()), _uncompiled():
      import rembg  # an optional extra: large, and most photos need no network
  except (ImportError, SystemExit) as error:
    raise MattingError(
      "the library rembg, which could remove the background, is not installed: pip install 'sds_jax[background]', or "
      "give a photo with a transparent or a plain background") from error
  try:
    session = rembg.new_session(NETWORK)
    mask = rembg.remove(Image.fromarray(np.rint(rgb * 255.0).astype(np.uint8)), session=session, only_mask=True)
  except Exception as error:  # pooch, requests and onnxruntime raise errors of their own
    reason = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
    raise MattingError(
      f"rembg could not use its network {NETWORK} ({reason}): go online once to download the network, or put "
      f"{NETWORK}.onnx into the folder of the environment variable U2NET_HOME, or give a photo with a transparent or "
      "a plain background") from error
  opacity = np.asarray(mask.convert("L"), np.float32) / 255.0
  # A network is never quite sure: opacities within 0.05 of 0 or 1 count as 0 or 1.
  return np.clip((opacity - 0.05) / 0.9, 0.0, 1.0)
