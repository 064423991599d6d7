"""Images for a prior's ControlNet (arXiv:2302.05543): depth or normals of the rendered views, as conditions.

The images follow the conventions of the annotators with which the published ControlNets were trained: MiDaS for depth,
NormalBae for normals.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.priors.controlnets import DEPTH, NORMAL
from sds_jax.types import Array, Camera, RenderOutput
from sds_jax.views.cameras import camera_rays

FACING = (0.5, 0.5, 1.0)
"""Colour of a surface that faces the camera: the background of a map of normals."""


def control_images(kind: str, render: RenderOutput, cameras: Camera, size: int) -> Array:
  """Returns the images that a ControlNet reads [B, size, size, 3] in [0, 1]; no gradient flows through them.

  Args:
    kind: a name in MAPS.
    render: of the views, leaves [B, H, W, ...].
    cameras: of the views, leaves [B, ...].
    size: height and width of the prior's images.
  """
  image = MAPS[kind](jax.lax.stop_gradient(render), cameras)
  wanted = (image.shape[0], size, size, 3)
  return image if image.shape == wanted else jax.image.resize(image, wanted, "linear")


def depth_map(render: RenderOutput, cameras: Camera) -> Array:
  """Returns inverse depth [B, H, W, 3], in each image stretched to [0, 1]: near is white.

  The background is infinitely far away, so that its inverse depth is 0. A view without any contrast is black.
  """
  height, width = render.depth.shape[1:]
  rays = jax.vmap(lambda camera: camera_rays(camera, height, width).directions)(cameras)
  # MiDaS estimates the distance to the camera's plane; a renderer gives the distance along the ray.
  cosine = -jnp.einsum("bhwi,bi->bhw", rays, cameras.rotation[..., 2])
  inverse = render.opacity / jnp.maximum(render.depth * cosine, 1e-3)
  low, high = (bound(inverse, axis=(1, 2), keepdims=True) for bound in (jnp.min, jnp.max))
  # The floor keeps the rounding of a view without contrast from being stretched to noise.
  stretched = (inverse - low) / jnp.maximum(high - low, 1e-3 * high + 1e-6)
  return jnp.broadcast_to(stretched[..., None], (*stretched.shape, 3))


def normal_map(render: RenderOutput, cameras: Camera) -> Array:
  """Returns normals in the camera's axes as colours [B, H, W, 3].

  Red is left, green is up, blue is towards the camera; -1 to 1 become 0 to 1. The background faces the camera.
  """
  n = jnp.einsum("bhwi,bij->bhwj", render.normals, cameras.rotation)
  n = n / jnp.maximum(jnp.linalg.norm(n, axis=-1, keepdims=True), 1e-6)
  # The columns of the rotation are right, up and backward.
  colour = 0.5 + 0.5 * n * jnp.array([-1.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
  opacity = jnp.clip(render.opacity, 0.0, 1.0)[..., None]
  return jnp.clip(opacity * colour + (1.0 - opacity) * jnp.array(FACING).reshape(1, 1, 1, 3), 0.0, 1.0)


MAPS: dict[str, Callable[[RenderOutput, Camera], Array]] = {DEPTH: depth_map, NORMAL: normal_map}
"""Kind of a ControlNet -> its images."""


IMAGES = {DEPTH: "depth", NORMAL: "normals"}
"""Kind of a ControlNet -> the image of a view that the ControlNet's images are made from, a field of RenderOutput."""


def with_control(cond: dict[str, Any], image: Array) -> dict[str, Any]:
  """Returns the condition of a guided denoiser with `control` on every side, as diffusers' pipeline has it.

  Args:
    cond: of `conditions.of_views`.
    image: [B, S, S, 3].
  """
  def side(conditions: dict[str, Any]) -> dict[str, Any]:
    return {**conditions, "control": image}

  return {name: value if name == "weights" else tuple(map(side, value)) if name == "negatives" else side(value)
          for name, value in cond.items()}
