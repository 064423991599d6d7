"""Conditioning on a photo and a pose (Zero-1-to-3, arXiv:2303.11328, section 3.1).

The photo enters twice. Its x, in the prior's own space, stands behind z_t at the U-Net's input. And its tokens, from a
CLIP image encoder, are each joined to the pose, projected, and attended to where other priors attend to text. The null
condition is zeros in place of all of that.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading import clip_pixels
from sds_jax.priors.loading.checkpoint import Stored, load_on_device, open_component
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.random_weights import random_tokens
from sds_jax.priors.networks.pose_layers import CCProjection, with_pose
from sds_jax.priors.spaces import Space, resized
from sds_jax.types import Array, Params
from sds_jax.views.poses import POSE_DIM, pose_features

PhotoFeatures = dict[str, Array]
"""Features of a photo: `tokens` [T, D]; `x` [h, w, C]; and `elevation` [], the photo's camera elevation as the prior
estimates it (radians; NaN: the prior has no estimate)."""

POSES = ("polar", "distance")
"""What the fourth number of a pose is: the photo's polar angle (Stable-Zero123 and ours), or the difference of
distances (Zero-1-to-3), which is 0 here since all views are as far away as the photo's."""

FEATURE_EXTRACTOR = frozenset({"feature_extractor/preprocessor_config.json"})
"""The small files that `open_photo` reads; they may be missing."""


@dataclasses.dataclass(frozen=True)
class PhotoConditioning:
  """How a prior is conditioned on a photo, without parameters.

  Attributes:
    projection: the layer from tokens and pose to what is attended to; its parameters are `params["cc_projection"]`.
    camera_dim: length of the camera features that the U-Net takes besides; 0: none.
    pose: one of POSES.
    encode: (photo [S, S, 3] in [0, 1], the object on white) -> PhotoFeatures, once for a run. Reads the image encoder
      and, for a prior of latents, the autoencoder, and drops their parameters, so not for use under jit. Raises
      ValueError for a photo that is not square or has other channels.
    estimates_elevation: whether `encode` estimates the elevation of the photo's camera.
    camera: (distance, fov_deg) of all views in the prior's training data; None: many.
  """
  projection: CCProjection
  camera_dim: int
  pose: str
  encode: Callable[[Array], PhotoFeatures]
  estimates_elevation: bool = False
  camera: tuple[float, float] | None = None

  def conditions(self, params: Params, features: PhotoFeatures, pose: Array) -> dict[str, Array]:
    """Returns the conditions of views of the photo's object.

    Args:
      params: the prior's parameters.
      features: of the photo, from `encode`.
      pose: [B, POSE_DIM], of the views (`poses.relative_pose`).

    Returns:
      `text` [B, T, D'], the tokens to attend to; `x` [B, h, w, C]; and `camera` [B, camera_dim] where the U-Net takes
      a camera.
    """
    batch = pose.shape[0]
    camera = dict(camera=pose_features(pose)) if self.camera_dim else {}
    # All views are as far away as the photo, so the difference of distances is 0.
    if self.pose == "distance":
      pose = pose.at[:, 3].set(0.0)
    repeated = lambda leaf: jnp.broadcast_to(leaf[None], (batch, *leaf.shape))  # noqa: E731
    context = self.projection.apply({"params": params["cc_projection"]}, with_pose(repeated(features["tokens"]), pose))
    # The prior's functions take and give float32, whatever the dtype of its networks.
    return dict(text=context.astype(jnp.float32), x=repeated(features["x"]), **camera)


def null_condition(cond: Any) -> Any:
  """Returns the null condition of the same structure: zeros."""
  return jax.tree.map(jnp.zeros_like, cond)


def open_photo(folder: Path, projection: CCProjection, projection_name: str, pose: str, space: Space, dtype: Any,
               resize: Callable[[Array, int], Array], space_places: Mapping[str, dict[Any, Stored]] | None = None,
               patch_tokens: bool = False, camera_dim: int = 0, camera: tuple[float, float] | None = None,
               variant: str = "") -> PhotoConditioning:
  """Opens the image encoder of a prior's folder; reads no weights.

  Where the folder has an elevation head, opens the head as well.

  Args:
    folder: the prior's folder.
    projection: the layer from tokens and pose to what is attended to.
    projection_name: the projection's folder, for messages.
    pose: one of POSES.
    space: the space in which the prior diffuses.
    dtype: of parameters and activations.
    resize: (photo [1, S, S, 3], size) -> [1, size, size, 3], the image encoder's input before normalisation.
    space_places: {network: where its parameters are stored} of the networks that `space.condition` needs.
    patch_tokens: whether the tokens of the photo's patches follow the token of the whole photo.
    camera_dim, camera: see `PhotoConditioning`.
    variant: of the weight files, see `checkpoint.weight_files`.

  Raises:
    CheckpointError: a file is missing or damaged, or parts do not fit each other.
    ValueError: a network is of a kind that is not supported.
  """
  encoder, encoder_places = open_component(folder / "image_encoder", "image_encoder", dtype, variant)
  # A token joined to the pose is what the projection takes.
  if projection.in_features != encoder.projection_dim + POSE_DIM:
    raise CheckpointError(f"{folder}: {projection_name} takes {projection.in_features} numbers, expected "
                          f"{encoder.projection_dim + POSE_DIM}, the image encoder's projection_dim and {POSE_DIM} of "
                          "the pose")
  head = head_places = None
  if (folder / "elevation_head").is_dir():
    head, head_places = open_component(folder / "elevation_head", "elevation_head", dtype, variant)
  normalise = clip_pixels.normaliser(folder / "feature_extractor")

  # Compiled once for any number of photos; the parameters are arguments and are not kept.
  # network=network binds now: a lambda would read the loop's variable at its call.
  encode_pixels, estimate = (jax.jit(lambda params, x, network=network: network.apply({"params": params}, x))
                             for network in (encoder, head))
  condition = jax.jit(space.condition)

  def encode(photo: Array) -> PhotoFeatures:
    photo = _at_size(photo, space.image_size)
    pixels = normalise(resize(photo, encoder.image_size))
    # Loaded for this call and dropped: a run encodes its photo once and needs the memory.
    tokens = encode_pixels(load_on_device(encoder_places, dtype), pixels)
    elevation = (estimate(load_on_device(head_places, dtype), tokens[:, 0])[0, 0] if head else jnp.float32(np.nan))
    params = {name: load_on_device(places, dtype) for name, places in (space_places or {}).items()}
    return dict(tokens=(tokens if patch_tokens else tokens[:, :1])[0].astype(jnp.float32),
                x=condition(params, photo)[0], elevation=elevation.astype(jnp.float32))

  return PhotoConditioning(projection, camera_dim, pose, encode, head is not None, camera)


def random_photo(projection: CCProjection, pose: str, space: Space) -> PhotoConditioning:
  """Returns a conditioning with random features; reads no file.

  The features depend on the photo only.
  """
  def encode(photo: Array) -> PhotoFeatures:
    pixels, (height, width, channels) = np.asarray(_at_size(photo, space.image_size)).tobytes(), space.x_shape
    # The prefix gives x other numbers than the tokens of the same photo.
    x = random_tokens(b"x" + pixels, height * width, channels).reshape(space.x_shape)
    return dict(tokens=random_tokens(pixels, 1, projection.in_features - POSE_DIM), x=x, elevation=jnp.float32(np.nan))

  return PhotoConditioning(projection, 0, pose, encode)


def pose_convention(index: Mapping[str, Any], folder: Path | None, default: str) -> str:
  """Returns the key `pose` of a model_index.json, one of POSES.

  Returns the default where the key is missing.

  Raises:
    CheckpointError: the key has another value.
  """
  pose = index.get("pose", default)
  if pose not in POSES:
    raise CheckpointError(f"{folder / 'model_index.json'}: pose={pose!r} is none of "
                          f"{', '.join(map(repr, POSES))}: 'polar' is right for Stable-Zero123's weights, 'distance' "
                          "for Zero-1-to-3's")
  return pose


def _at_size(photo: Array, size: int) -> Array:
  """Returns the photo [S, S, 3] as [1, size, size, 3]."""
  if photo.ndim != 3:
    raise ValueError(f"the photo has shape {photo.shape}, expected one square photo [S, S, 3]")
  return resized(photo[None], size)
