"""How a prior takes a picture and a pose in place of words (Zero-1-to-3, arXiv:2303.11328, section 3.1).

The picture goes in twice. As the prior's own kind of image it stands behind z_t at the U-Net's input; and tokens of it,
by a CLIP image encoder, are each joined to the pose, projected, and attended to where other priors attend to text. The
null condition is zeros in place of all of it.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading import clip_pixels
from sds_jax.priors.loading.checkpoint import Stored, load_on_device, open_component
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.random_weights import random_tokens
from sds_jax.priors.loading.sources import Source, is_stable_zero123
from sds_jax.priors.networks.pose_layers import CCProjection, with_pose
from sds_jax.priors.spaces import Space, resized
from sds_jax.types import Array, Params
from sds_jax.views.poses import DISTANCE, FOV_Y, POSE_DIM, pose_features

Seen = dict[str, Array]
"""A picture as a prior keeps it: `tokens` [T, D], `x` [h, w, C], and `elevation` [], from where it was taken as far as
the prior can tell (radians; NaN: it can't)."""

POSES = ("polar", "distance")
"""What the fourth number of a pose is: the picture's polar angle (Stable-Zero123 and ours), or the difference of
distances (Zero-1-to-3), which is 0 here since all views are as far away as the picture's."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """What folders of a kind call the projection's component, and how CLIP's input is resized."""
  projection: str
  resize: Callable[[Array, int], Array]


LAYOUTS = {
  "our views": Layout("cc_projection", clip_pixels.antialiased),
  "Zero1to3StableDiffusionPipeline": Layout("cc_projection", clip_pixels.aligned),
  "Zero123Pipeline": Layout("clip_camera_projection", clip_pixels.antialiased),
}
"""Kinds of folders that are told a picture: ours, and the two of Zero-1-to-3's weights."""


@dataclasses.dataclass(frozen=True)
class Sight:
  """How a prior takes a picture, without parameters.

  Attributes:
    projection: its parameters are `params["cc_projection"]`.
    camera_dim: length of the camera features that the U-Net takes besides; 0: none.
    pose: one of POSES.
    see: (picture [S, S, 3] in [0, 1], the object on white) -> Seen, once for a run; reads the image encoder, and of a
      prior of latents the autoencoder, and drops them, so not for use under jit. Raises ValueError for a picture that
      is not square or has other channels.
    tells_elevation: whether `see` can tell from where a picture was taken.
    camera: (distance, fov_deg) of all the views that the prior has seen; None: it has seen many.
  """
  projection: CCProjection
  camera_dim: int
  pose: str
  see: Callable[[Array], Seen]
  tells_elevation: bool = False
  camera: tuple[float, float] | None = None

  def tell(self, params: Params, seen: Seen, pose: Array) -> dict[str, Array]:
    """What the U-Net is told of the views at `pose` [B, POSE_DIM] (`poses.relative_pose`) of the object that was seen.

    Returns:
      `text` [B, T, D'], which is attended to; `x` [B, h, w, C]; and `camera` [B, camera_dim] where it takes one.
    """
    batch = pose.shape[0]
    camera = dict(camera=pose_features(pose)) if self.camera_dim else {}
    if self.pose == "distance":
      pose = pose.at[:, 3].set(0.0)
    repeated = lambda leaf: jnp.broadcast_to(leaf[None], (batch, *leaf.shape))  # noqa: E731
    context = self.projection.apply({"params": params["cc_projection"]}, with_pose(repeated(seen["tokens"]), pose))
    return dict(text=context.astype(jnp.float32), x=repeated(seen["x"]), **camera)


def null(cond: Mapping[str, Array]) -> dict[str, Array]:
  """The null condition of the same structure: zeros."""
  return jax.tree.map(jnp.zeros_like, dict(cond))


def open_sight(source: Source, kind: str, index: Mapping[str, Any], space: Space, dtype: Any,
               others: Mapping[str, dict[Any, Stored]]) -> tuple[Sight, dict[Any, Stored]]:
  """The sight in a prior's folder, and where the projection's parameters stand; reads no weights.

  Args:
    source: the prior's.
    kind: a key of LAYOUTS.
    index: its `model_index.json`; `pose`, `patch_tokens` and `camera_dim` are read.
    space: where the prior diffuses.
    dtype: of parameters and activations.
    others: where the parameters of the prior's other networks stand; those of `vae` are read where there is one.

  Raises:
    CheckpointError: a file is missing or damaged, or parts do not fit each other.
    ValueError: a network is of a kind that isn't supported.
  """
  folder, layout = source.folder, LAYOUTS[kind]
  encoder, encoder_places = open_component(folder / "image_encoder", "image_encoder", dtype)
  projection, places = open_component(folder / layout.projection, "cc_projection", dtype)
  if projection.in_features != encoder.projection_dim + POSE_DIM:
    raise CheckpointError(f"{folder}: {layout.projection} takes {projection.in_features} numbers, expected "
                          f"{encoder.projection_dim + POSE_DIM}, the image encoder's projection_dim and {POSE_DIM} of "
                          "the pose")
  head = head_places = None
  if (folder / "elevation_head").is_dir():
    head, head_places = open_component(folder / "elevation_head", "elevation_head", dtype)
  pose = fourth_number(index, source)
  normalise = clip_pixels.normaliser(folder / "feature_extractor")
  all_tokens = bool(index.get("patch_tokens", False))

  # Compiled once, for however many pictures are seen; their parameters are not kept.
  encode, estimate = (jax.jit(lambda params, x, network=network: network.apply({"params": params}, x))
                      for network in (encoder, head))
  condition = jax.jit(space.condition)

  def see(picture: Array) -> Seen:
    picture = _at_size(picture, space.image_size)
    pixels = normalise(layout.resize(picture, encoder.image_size))
    tokens = encode(load_on_device(encoder_places, dtype), pixels)
    elevation = (estimate(load_on_device(head_places, dtype), tokens[:, 0])[0, 0] if head else jnp.float32(np.nan))
    params = {name: load_on_device(others[name], dtype) for name in others.keys() & {"vae"}}
    return dict(tokens=(tokens if all_tokens else tokens[:, :1])[0].astype(jnp.float32),
                x=condition(params, picture)[0], elevation=elevation.astype(jnp.float32))

  camera = (DISTANCE, math.degrees(FOV_Y)) if kind == "our views" else None
  return Sight(projection, index.get("camera_dim", 0), pose, see, head is not None, camera), places


def random_sight(source: Source, projection: CCProjection, space: Space) -> Sight:
  """One that sees a random token and a random x, the same in the same picture, without a file."""
  def see(picture: Array) -> Seen:
    seen, (height, width, channels) = np.asarray(_at_size(picture, space.image_size)).tobytes(), space.x_shape
    x = random_tokens(b"x" + seen, height * width, channels).reshape(space.x_shape)
    return dict(tokens=random_tokens(seen, 1, projection.in_features - POSE_DIM), x=x, elevation=jnp.float32(np.nan))

  return Sight(projection, 0, fourth_number({}, source), see)


def _at_size(picture: Array, size: int) -> Array:
  """[S, S, 3] as [1, size, size, 3], which is what both ways in begin with."""
  if picture.ndim != 3:
    raise ValueError(f"the picture has shape {picture.shape}, expected one square picture [S, S, 3]")
  return resized(picture[None], size)


def fourth_number(index: Mapping[str, Any], source: Source) -> str:
  """One of POSES: the key `pose` of a `model_index.json`; where there is none, as in all published folders, "polar" for
  a repository, folder or name with "stable-zero" in it (`stable_zero`, `stablezero`), and "distance" for others.

  Raises:
    CheckpointError: the key has another value.
  """
  names = (source.repo, Path(source.name).name, source.folder.resolve().name if source.folder else "")
  stable = any(map(is_stable_zero123, names))
  pose = index.get("pose", "polar" if stable else "distance")
  if pose not in POSES:
    raise CheckpointError(f"{source.folder / 'model_index.json'}: pose={pose!r} is none of "
                          f"{', '.join(map(repr, POSES))}: 'polar' is right for Stable-Zero123's weights, 'distance' "
                          "for Zero-1-to-3's")
  return pose
