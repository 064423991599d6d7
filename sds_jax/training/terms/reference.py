"""The losses of the viewpoint from which a photo was taken, where the object must look as in the photo.

The losses are those of Zero-1-to-3's and Magic123's reconstructions (arXiv:2303.11328, arXiv:2306.17843, section 3.1).
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.diffusion.scalars import ScalarSpec, schedule_value
from sds_jax.fields.background import plain_colour
from sds_jax.generators.custom import CustomGenerator
from sds_jax.generators.field import FieldGenerator
from sds_jax.generators.protocol import Views
from sds_jax.training.step import Context
from sds_jax.types import Array, Camera, RenderOutput
from sds_jax.views import cameras

PhotoData = dict[str, Any]
"""A photo on the device: `photo` [S, S, 4] float32 in [0, 1], colours times opacity, and opacity; `azimuth` and
`elevation` [] of its camera in radians; perhaps maps: `depth` (or `disparity`, of which 1 / depth is a linear function)
[S, S, 2] and `normals` [S, S, 4], whose last channel is the confidence, by which the other channels are multiplied."""


def photo_camera(data: PhotoData, distance: float, fov_y: float) -> Camera:
  """Returns the photo's camera, leaves [1, ...]; `fov_y` in radians."""
  one = cameras.orbit(data["azimuth"], data["elevation"], distance, fov_y)
  return jax.tree.map(lambda leaf: leaf[None], one)


@dataclasses.dataclass(frozen=True)
class Reference:
  """The weighted sum of LOSSES in the photo's own view.

  Render and photo are composited over the same random background colour, so that no part of the object can hide by
  having the background's colour.

  Attributes:
    generator: renders the view.
    weights: pairs (name in LOSSES, weight); may change over the run.
    distance: of the photo's camera, world units.
    fov_y: vertical field of view of the photo's camera, radians.
  """
  generator: FieldGenerator | CustomGenerator
  weights: tuple[tuple[str, ScalarSpec], ...]
  distance: float
  fov_y: float

  def __call__(self, views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
    """Returns the sum of the losses, and each loss as a metric.

    The metric `reference_overflow` is the share of samples beyond the view's budget.
    """
    del views
    if not self.weights:
      return jnp.zeros(()), {}
    generator, data, progress = self.generator, context.conditions, context.draws.progress
    # No view has this number, so that the reference view draws alike on every device, and as no other view does.
    key = jax.random.fold_in(context.draws.keys["rest"], generator.viewpoints.views)
    k_background, k_jitter = jax.random.split(key)
    size = generator.size
    background = jnp.broadcast_to(plain_colour(k_background)[None, None, None], (1, size, size, 3))
    names = [name for name, _ in self.weights]
    camera = photo_camera(data, self.distance, self.fov_y)
    out, overflow = generator.render_reference(context.params, context.state.occupancy, camera, background, k_jitter,
                                               progress, normals=bool({"normals", "smoothness"} & set(names)))
    values = {name: LOSSES[name](out, data, background, camera) for name in names}
    total = sum(schedule_value(weight, progress) * values[name] for name, weight in self.weights)
    return total, dict(values, reference_overflow=overflow)


def rgb(out: RenderOutput, data: PhotoData, background: Array, camera: Camera) -> Array:
  """Returns the mean squared error of colours, both over `background` [1, S, S, 3]."""
  photo = _resize(data["photo"], out.rgb.shape[1])
  # The photo's colours are multiplied by its opacity already.
  return jnp.mean((out.rgb[0] - photo[..., :3] - (1.0 - photo[..., 3:]) * background[0]) ** 2)


def mask(out: RenderOutput, data: PhotoData, background: Array, camera: Camera) -> Array:
  """Returns the mean squared error of opacity."""
  return jnp.mean((out.opacity[0] - _resize(data["photo"], out.rgb.shape[1])[..., 3]) ** 2)


def depth(out: RenderOutput, data: PhotoData, background: Array, camera: Camera) -> Array:
  """Returns 1 - Pearson's correlation of depths along the camera's axis.

  Correlation ignores scale and offset, which a single photo does not determine (SparseGS, Magic123). Pixels count where
  the object is opaque and the map has a value.
  """
  size = out.rgb.shape[1]
  # The camera looks along its negative z axis.
  axis = -camera.rotation[0, :, 2]
  directions = cameras.camera_rays(jax.tree.map(lambda leaf: leaf[0], camera), size, size).directions
  # Renders have distances along the rays, maps depths along the camera's axis.
  rendered = out.depth[0] * (directions @ axis)
  if "disparity" in data:
    # Empty pixels have depth 0 and weight 0, and 0 times infinity would be NaN.
    rendered = 1.0 / jnp.maximum(rendered, 0.1)
  true, confidence = _resize_map(data["disparity" if "disparity" in data else "depth"], size)
  weight = confidence * jax.lax.stop_gradient(out.opacity[0])  # empty pixels have no depth
  # 1e-6: an object that is nowhere opaque has no weight to divide by.
  centred = [d - jnp.sum(weight * d) / (jnp.sum(weight) + 1e-6) for d in (rendered, true[..., 0])]
  (a, b), dot = centred, lambda x, y: jnp.sum(weight * x * y)  # noqa: E731
  # A flat depth has no deviation: 1e-8 avoids 0 / 0, and the infinite derivative of sqrt at 0.
  return 1.0 - dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b) + 1e-8)


def normals(out: RenderOutput, data: PhotoData, background: Array, camera: Camera) -> Array:
  """Returns 1 - cosine of the normals, where the object is.

  The normals are in the camera's frame: right, up, towards the camera.
  """
  true, weight = _resize_map(data["normals"], out.rgb.shape[1])
  # The transpose of the rotation takes world to camera.
  rendered = jnp.einsum("ji,hwj->hwi", camera.rotation[0], out.normals[0])
  cosine = jnp.sum(rendered * true, -1) / jnp.sqrt(jnp.sum(rendered**2, -1) * jnp.sum(true**2, -1) + 1e-8)
  return jnp.sum(weight * (1.0 - cosine)) / (jnp.sum(weight) + 1e-6)


def smoothness(out: RenderOutput, data: PhotoData, background: Array, camera: Camera) -> Array:
  """Returns the mean squared difference of the normals of neighbouring pixels."""
  n = out.normals[0]
  return jnp.mean((n[1:] - n[:-1]) ** 2) + jnp.mean((n[:, 1:] - n[:, :-1]) ** 2)


LOSSES: dict[str, Callable[[RenderOutput, PhotoData, Array, Camera], Array]] = {
    "rgb": rgb, "mask": mask, "depth": depth, "normals": normals, "smoothness": smoothness}
"""Name of the weight in `loss` -> (render [1], photo, background, camera [1]) -> float32 scalar."""


def _resize_map(values: Array, size: int) -> tuple[Array, Array]:
  """Returns a map's values [size, size, C] and their confidence [size, size]."""
  *_, confidence = jnp.moveaxis(_resize(values, size), -1, 0)
  # Values come multiplied by the confidence, so the quotient averages the known pixels only.
  return _resize(values, size)[..., :-1] / jnp.maximum(confidence, 1e-6)[..., None], confidence


def _resize(image: Array, size: int) -> Array:
  """Returns [S, S, C] at [size, size, C]; smaller sizes average."""
  return image if image.shape[0] == size else jax.image.resize(image, (size, size, image.shape[-1]), "linear")
