"""The losses of the view that a picture was taken from: there the object must look as in the picture.

The terms are those of Zero-1-to-3's and Magic123's reconstructions (arXiv:2303.11328, arXiv:2306.17843, section 3.1).
"""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.fields.background import plain_colour
from sds_jax.rendering.render import render_views
from sds_jax.training import parts
from sds_jax.training.config import scalar_spec
from sds_jax.training.step import Scene
from sds_jax.types import Array, Camera, Params, RenderOutput
from sds_jax.views import cameras

def camera(config: ml_collections.FrozenConfigDict, told: dict[str, Any]) -> Camera:
  """The picture's camera [1], `told` its `azimuth` and `elevation` [] in radians."""
  one = cameras.orbit(told["azimuth"], told["elevation"], config.camera.distance[0],
                      math.radians(config.camera.fov_deg[0]))
  return jax.tree.map(lambda leaf: leaf[None], one)


def losses(scene: Scene, params: Params, grid: Any, told: dict[str, Any], key: Array,
           progress: Array) -> tuple[Array, dict[str, Array]]:
  """The weighted sum of LOSSES, and each of those whose weight is not 0, as float32 scalars; beside them, as
  `picture_overflow`, what `render_views` says of its rays. Consumes `key`.

  Render and picture are laid on one random colour, so that nothing can hide before either.

  Args:
    scene: of the step.
    params, grid: what is rendered.
    told: `picture` [S, S, 4] float32 in [0, 1], colours times opacity, and opacity; where their losses are on, `depth`
      (or `disparity`, of which 1 / depth is a linear function) [S, S, 2] and `normals` [S, S, 4], whose last channel
      says where they are known, and by which the others are multiplied; and what `camera` wants.
    progress: fraction of the run that is done, [] float32.
  """
  config, size = scene.config, scene.config.render.height
  wanted = [name for name in LOSSES if config.loss[name] != (0.0,)]
  if not wanted:
    return jnp.zeros(()), {}
  k_background, k_jitter = jax.random.split(key)
  behind = jnp.broadcast_to(plain_colour(k_background)[None, None, None], (1, size, size, 3))
  shaped = {"normals", "smoothness"} & set(wanted)
  options = dataclasses.replace(scene.options, normals=config.render.normals if shaped else "none")
  field, field_params = parts.field_now(scene.field, config, params["field"], progress)
  shot = camera(config, told)
  out, overflow = render_views(field, field_params, shot, size, size, behind, k_jitter[None], options=options,
                               grid=grid)
  found = {name: LOSSES[name](out, told, behind, shot) for name in wanted}
  total = sum(schedule_value(scalar_spec(config.loss[name]), progress) * value for name, value in found.items())
  return total, dict(found, picture_overflow=overflow)


def rgb(out: RenderOutput, told: dict[str, Any], behind: Array, shot: Camera) -> Array:
  """Mean squared error of colours, both on `behind` [1, S, S, 3]."""
  picture = _at(told["picture"], out.rgb.shape[1])
  return jnp.mean((out.rgb[0] - picture[..., :3] - (1.0 - picture[..., 3:]) * behind[0]) ** 2)


def mask(out: RenderOutput, told: dict[str, Any], behind: Array, shot: Camera) -> Array:
  """Mean squared error of opacity."""
  return jnp.mean((out.opacity[0] - _at(told["picture"], out.rgb.shape[1])[..., 3]) ** 2)


def depth(out: RenderOutput, told: dict[str, Any], behind: Array, shot: Camera) -> Array:
  """1 - Pearson's correlation of depths along the camera's axis where the object is and the picture has it: single
  pictures tell no scale (SparseGS, Magic123)."""
  size = out.rgb.shape[1]
  axis = -shot.rotation[0, :, 2]
  found = out.depth[0] * (cameras.camera_rays(jax.tree.map(lambda leaf: leaf[0], shot), size, size).directions @ axis)
  if "disparity" in told:
    found = 1.0 / jnp.maximum(found, 0.1)
  true, known = _map_at(told["disparity" if "disparity" in told else "depth"], size)
  weight = known * jax.lax.stop_gradient(out.opacity[0])  # where nothing is there is no depth, either
  centred = [d - jnp.sum(weight * d) / (jnp.sum(weight) + 1e-6) for d in (found, true[..., 0])]
  (a, b), dot = centred, lambda x, y: jnp.sum(weight * x * y)  # noqa: E731
  return 1.0 - dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b) + 1e-8)


def normals(out: RenderOutput, told: dict[str, Any], behind: Array, shot: Camera) -> Array:
  """1 - cosine of normals where the object is, in the camera's frame (right, up, towards it)."""
  true, weight = _map_at(told["normals"], out.rgb.shape[1])
  found = jnp.einsum("ji,hwj->hwi", shot.rotation[0], out.normals[0])
  cosine = jnp.sum(found * true, -1) / jnp.sqrt(jnp.sum(found**2, -1) * jnp.sum(true**2, -1) + 1e-8)
  return jnp.sum(weight * (1.0 - cosine)) / (jnp.sum(weight) + 1e-6)


def smoothness(out: RenderOutput, told: dict[str, Any], behind: Array, shot: Camera) -> Array:
  """Mean squared difference of the normals of neighbouring pixels."""
  n = out.normals[0]
  return jnp.mean((n[1:] - n[:-1]) ** 2) + jnp.mean((n[:, 1:] - n[:, :-1]) ** 2)


LOSSES = {"rgb": rgb, "mask": mask, "depth": depth, "normals": normals, "smoothness": smoothness}
"""Of `loss`, the terms that are about this view: (render [1], told, behind, camera [1]) -> float32 scalar."""


def _map_at(values: Array, size: int) -> tuple[Array, Array]:
  """A map's values [size, size, C], without what is not known, and how well each is known [size, size]."""
  *_, known = jnp.moveaxis(_at(values, size), -1, 0)
  return _at(values, size)[..., :-1] / jnp.maximum(known, 1e-6)[..., None], known


def _at(image: Array, size: int) -> Array:
  """[S, S, C] at [size, size, C]; smaller ones are averaged down to."""
  return image if image.shape[0] == size else jax.image.resize(image, (size, size, image.shape[-1]), "linear")
