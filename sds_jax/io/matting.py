"""Taking the background out of a picture: by its one plain colour, or by the network of the library `rembg`."""
from __future__ import annotations

import contextlib
import io
import textwrap

import numpy as np
from PIL import Image
from scipy import ndimage

TOLERANCE = 0.06
"""How far a pixel of a plain background may be from its colour, in the channel that differs most: the noise of JPEG."""
PLAIN_SHARE = 0.9
"""Share of the border's pixels that have to be of one colour; an object may cover the rest."""
SPECK = 1e-3
"""What is smaller than this share of an object's area, and apart from it, is dust."""
_HOLE_NOISE = 4.5 / 255
"""A region that the object encloses is a hole where its median is this near to the background's colour; the small
hole of a ring is up to four levels off in a JPEG file."""
_HOLE_SHARE = 1e-3
"""And where it has at least this share of the picture: a highlight is smaller."""
_EVERYWHERE = np.ones((3, 3), bool)
NETWORK = "u2net"
"""The network that rembg loads: Apache-2.0, 176 MB. rembg's own choice, bria-rmbg, may not be used commercially."""


class MattingError(ValueError):
  """The background could not be taken out; the message says why and what helps, and does not name the picture."""


def border_colour(rgb: np.ndarray) -> tuple[np.ndarray, float]:
  """The colour [3] of the border (two pixels wide) of a picture [H, W, 3], and the share of its pixels that have it."""
  ring = [rgb[:2], rgb[-2:], rgb[:, :2], rgb[:, -2:]]
  border = np.concatenate([part.reshape(-1, 3) for part in ring])
  colour = np.median(border, axis=0)
  return colour, float((np.abs(border - colour).max(-1) <= TOLERANCE).mean())


def remove_specks(mask: np.ndarray) -> np.ndarray:
  """A bool mask [H, W] without the parts that have less than SPECK of the largest one's area."""
  labels, count = ndimage.label(mask, _EVERYWHERE)
  if count <= 1:
    return mask
  areas = np.bincount(labels.ravel())
  areas[0] = 0
  return (areas >= SPECK * areas.max())[labels]


def matte_by_colour(rgb: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The object of a picture [H, W, 3] on a background of one `colour` [3]: (premultiplied [H, W, 3], opacity [H, W]).

  Background is what has its colour and either reaches the border or is a hole, which is flatter and larger than the
  highlights of an object. Along the edge, two pixels wide, opacity is a pixel's difference to the background over the
  largest within two pixels, which is right where the object is of one colour there; the background's share of the
  colour is taken out.
  """
  difference = np.abs(rgb - colour).max(-1)
  background = _background(rgb, difference <= TOLERANCE, colour)
  solid = remove_specks(~background)
  inner = ~ndimage.binary_dilation(~solid, _EVERYWHERE, iterations=2)
  # The fringe beyond the tolerance belongs to the edge too: a pixel of which the object covers a twentieth.
  edge = ndimage.binary_dilation(solid, _EVERYWHERE) & ~inner
  reference = ndimage.maximum_filter(difference, 5)
  share = np.clip(difference / np.maximum(reference, TOLERANCE), 0.0, 1.0)
  opacity = np.where(inner, 1.0, np.where(edge, share, 0.0)).astype(np.float32)
  premultiplied = np.clip(rgb - (1.0 - opacity[..., None]) * colour, 0.0, opacity[..., None])
  return premultiplied.astype(np.float32), opacity


def _background(rgb: np.ndarray, alike: np.ndarray, colour: np.ndarray) -> np.ndarray:
  """Those regions of the pixels `alike` [H, W] that reach the border or are holes."""
  labels, count = ndimage.label(alike)
  ring = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
  keep = np.zeros(count + 1, bool)
  keep[ring] = True
  index = np.arange(count + 1)
  areas = np.bincount(labels.ravel(), minlength=count + 1)
  holes = index[1:][~keep[1:] & (areas[1:] >= max(4, _HOLE_SHARE * alike.size))]
  if holes.size:
    medians = np.stack([ndimage.median(rgb[..., c], labels, holes) for c in range(3)], axis=-1)
    keep[holes] = np.abs(medians - colour).max(-1) <= _HOLE_NOISE
  keep[0] = False
  return keep[labels]


def matte_by_network(rgb: np.ndarray) -> np.ndarray:
  """Opacity [H, W] float32 of the object in a picture [H, W, 3], by `rembg`, which fetches its network once.

  Raises:
    MattingError: the library is not installed, or the network can be neither found nor fetched.
  """
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # where it finds no onnxruntime, it prints a page
      import rembg  # an extra: large, and most pictures do without
  except (ImportError, SystemExit) as error:  # and would end the process
    raise MattingError(
      "the library rembg, which would take it out, is not installed: pip install 'sds_jax[background]', or give a "
      "picture with a transparent or a plain background") from error
  try:
    session = rembg.new_session(NETWORK)
    mask = rembg.remove(Image.fromarray(np.rint(rgb * 255.0).astype(np.uint8)), session=session, only_mask=True)
  except Exception as error:  # of pooch, requests, onnxruntime: whatever keeps the network from being there
    reason = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
    raise MattingError(
      f"rembg could not use its network {NETWORK} ({reason}): connect once so that it can be fetched, or put "
      f"{NETWORK}.onnx into the folder that the environment variable U2NET_HOME names, or give a picture with a "
      f"transparent or a plain background") from error
  opacity = np.asarray(mask.convert("L"), np.float32) / 255.0
  # A network is never quite sure: what is within a twentieth of nothing or of everything is meant so.
  return np.clip((opacity - 0.05) / 0.9, 0.0, 1.0)
