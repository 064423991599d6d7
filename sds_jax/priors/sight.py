"""How a prior takes a picture and a pose in place of words (Zero-1-to-3, arXiv:2303.11328, section 3.1).

The picture goes in twice. As the prior's own kind of image it stands behind z_t at the U-Net's input; and tokens of it,
by a CLIP image encoder, are each joined to the pose, projected, and attended to where other priors attend to text. The
null condition is zeros in place of all of it.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.checkpoint import Stored, load_on_device, open_component
from sds_jax.priors.files import CheckpointError, read_json
from sds_jax.priors.spaces import Space
from sds_jax.priors.views import CCProjection, with_pose
from sds_jax.types import Array, Params
from sds_jax.views.poses import POSE_DIM, pose_features

Seen = dict[str, Array]
"""A picture as a prior keeps it: `tokens` [T, D], `x` [h, w, C], and `elevation` [], from where it was taken as far as
the prior can tell (radians; NaN: it can't)."""

POSES = ("polar", "distance")
"""What the fourth number of a pose is: the picture's polar angle (Stable-Zero123 and ours), or the difference of
distances (Zero-1-to-3), which is 0 here since all views are as far away as the picture's."""


@dataclasses.dataclass(frozen=True)
class Sight:
  """How a prior takes a picture, without parameters.

  Attributes:
    projection: its parameters are `params["cc_projection"]`.
    camera_dim: length of the camera features that the U-Net takes besides; 0: none.
    pose: one of POSES.
    see: (picture [S, S, 3] in [0, 1], the object on white) -> Seen, once for a run; reads the image encoder, and of a
      prior of latents the autoencoder, and drops them, so not for use under jit.
  """
  projection: CCProjection
  camera_dim: int
  pose: str
  see: Callable[[Array], Seen]

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


def open_sight(folder: Path, index: Mapping[str, Any], space: Space, dtype: Any,
               others: Mapping[str, dict[Any, Stored]]) -> tuple[Sight, dict[Any, Stored]]:
  """The sight in a prior's folder, and where the projection's parameters stand; reads no weights.

  Args:
    index: its `model_index.json`; `pose`, `patch_tokens` and `camera_dim` are read.
    space: where the prior diffuses.
    dtype: of parameters and activations.
    others: where the parameters of the prior's other networks stand; those of `vae` are read where there is one.

  Raises:
    CheckpointError: a file is missing or damaged, or parts do not fit each other.
    ValueError: a network is of a kind that isn't supported.
  """
  encoder, encoder_places = open_component(folder / "image_encoder", "image_encoder", dtype)
  projection, places = open_component(folder / "cc_projection", "cc_projection", dtype)
  if projection.in_features != encoder.projection_dim + POSE_DIM:
    raise CheckpointError(f"{folder}: the projection's in_features is {projection.in_features}, expected "
                          f"{encoder.projection_dim + POSE_DIM}, the image encoder's projection_dim and {POSE_DIM} of "
                          "the pose")
  head = None
  if (folder / "elevation_head").is_dir():
    head = open_component(folder / "elevation_head", "elevation_head", dtype)
  pose = index.get("pose", "distance")
  if pose not in POSES:
    raise CheckpointError(f"{folder / 'model_index.json'}: pose={pose!r} is none of {', '.join(map(repr, POSES))}")
  normalise = _normaliser(folder)
  all_tokens = bool(index.get("patch_tokens", False))

  def see(picture: Array) -> Seen:
    pixels = normalise(_resized(picture[None], encoder.image_size))
    tokens = _apply(encoder, encoder_places, dtype, pixels)
    elevation = _apply(*head, dtype, tokens[:, 0])[0, 0] if head else jnp.float32(np.nan)
    params = {name: load_on_device(others[name], dtype) for name in others.keys() & {"vae"}}
    return dict(tokens=(tokens if all_tokens else tokens[:, :1])[0].astype(jnp.float32),
                x=jax.jit(space.condition)(params, picture[None])[0], elevation=elevation.astype(jnp.float32))

  return Sight(projection, index.get("camera_dim", 0), pose, see), places


def _apply(network: nn.Module, places: dict[Any, Stored], dtype: Any, x: Array) -> Array:
  return jax.jit(lambda params, x: network.apply({"params": params}, x))(load_on_device(places, dtype), x)


def _normaliser(folder: Path) -> Callable[[Array], Array]:
  """(picture - mean) / std by the feature extractor's settings, or CLIP's own where there are none."""
  path = folder / "feature_extractor" / "preprocessor_config.json"
  settings = read_json(path) if path.is_file() else {}
  mean = settings.get("image_mean", CLIP_MEAN)
  std = settings.get("image_std", CLIP_STD)
  return lambda picture: (picture - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's preprocessing."""


def _resized(picture: Array, size: int) -> Array:
  """[B, S, S, 3] at [B, size, size, 3], bicubically, smoothed where it becomes smaller."""
  return picture if picture.shape[1] == size else jax.image.resize(
      picture, (picture.shape[0], size, size, 3), "cubic", antialias=True)
