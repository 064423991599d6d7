"""Fixed shapes with a texture: where a ray meets the shape and the texture, in closed form."""
from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array, Rays

Surface = Callable[[Rays, float], tuple[Array, Array, Array]]
"""(rays [...], size) -> (hit [...] bool, chart [...] int32, uv [..., 2] in [0, 1]); size in world units."""


def sphere(rays: Rays, size: float) -> tuple[Array, Array, Array]:
  """Intersects rays with a sphere of radius `size`.

  One chart: u is the azimuth over 2 pi (0 on +x, growing towards +y), v runs from the north pole to the south pole.
  |o + t d|^2 = r^2 has its nearer root at t = -o.d - sqrt((o.d)^2 - |o|^2 + r^2).
  """
  o, d = rays.origins, rays.directions
  b = jnp.sum(o * d, axis=-1)
  inside = b * b - jnp.sum(o * o, axis=-1) + size * size
  # b < 0: the sphere lies ahead, not behind.
  hit = (inside > 0) & (b < 0)
  # The root of a negative number would be NaN, also in the gradient of a `where` that discards it.
  point = (o + (-b - jnp.sqrt(jnp.maximum(inside, 0.0)))[..., None] * d) / size
  u = jnp.mod(jnp.arctan2(point[..., 1], point[..., 0]) / (2 * jnp.pi), 1.0)
  # Clipped, because rays that miss have any z, and arccos beyond 1 is NaN.
  v = jnp.arccos(jnp.clip(point[..., 2], -1.0, 1.0)) / jnp.pi
  return hit, jnp.zeros(hit.shape, jnp.int32), jnp.stack([u, v], axis=-1)


def cube(rays: Rays, size: float) -> tuple[Array, Array, Array]:
  """Intersects rays with a cube of half-width `size`.

  The charts are +x, -x, +y, -y, +z, -z.

  Sides are upright and read from left to right seen from outside; +z is seen from above and -z from below, each with
  the right of the chart towards +y. The slab method: a ray is inside between the last entry and the first exit.
  """
  o, d = rays.origins, rays.directions
  d = jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)  # a ray along a side would divide 0 by 0
  first, second = (-size - o) / d, (size - o) / d
  entry = jnp.minimum(first, second)
  leave = jnp.min(jnp.maximum(first, second), axis=-1)
  t, axis = jnp.max(entry, axis=-1), jnp.argmax(entry, axis=-1)
  x, y, z = jnp.moveaxis((o + t[..., None] * d) / size, -1, 0)
  # A ray that rises along an axis enters through the side at the axis's negative end.
  negative_side = jnp.take_along_axis(d, axis[..., None], axis=-1)[..., 0] > 0
  chart = 2 * axis.astype(jnp.int32) + negative_side.astype(jnp.int32)
  right = jnp.select([chart == i for i in range(6)], [y, -y, -x, x, y, y])
  down = jnp.select([chart == i for i in range(6)], [-z, -z, -z, -z, x, -x])
  # Clipped: rays that miss have any coordinates.
  return (t < leave) & (t > 0), chart, jnp.clip(0.5 * jnp.stack([right, down], axis=-1) + 0.5, 0.0, 1.0)


SURFACES: dict[str, tuple[Surface, int, int, bool]] = {"sphere": (sphere, 1, 2, True), "cube": (cube, 6, 1, False)}
"""Name -> (surface, number of charts, width of a chart over its height, whether charts close in u)."""


def lookup(texture: Array, chart: Array, uv: Array, closed: bool) -> Array:
  """Interpolates bilinearly between the centres of texels.

  Args:
    texture: [charts, h, w, C].
    chart: [...] int32.
    uv: [..., 2] in [0, 1], u to the right and v downwards.
    closed: whether u = 0 and u = 1 are one place; else the border texels continue.

  Returns:
    [..., C].
  """
  _, h, w, _ = texture.shape
  # The centre of texel i is at (i + 0.5) / w.
  x, y = uv[..., 0] * w - 0.5, jnp.clip(uv[..., 1] * h - 0.5, 0.0, h - 1.0)
  x = x if closed else jnp.clip(x, 0.0, w - 1.0)
  left, top = jnp.floor(x), jnp.floor(y)
  fx, fy = (x - left)[..., None], (y - top)[..., None]
  # On a closed chart the last column is the left neighbour of the first.
  columns = [jnp.mod(left.astype(jnp.int32) + i, w) if closed else jnp.minimum(left.astype(jnp.int32) + i, w - 1)
             for i in (0, 1)]
  rows = [jnp.minimum(top.astype(jnp.int32) + i, h - 1) for i in (0, 1)]
  (a, b), (c, e) = [[texture[chart, row, column] for column in columns] for row in rows]
  return (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * e)
