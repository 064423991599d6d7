"""A sphere tracer for ShapeWorld: images, coverage and silhouettes of a scene from a pinhole camera.

Sphere tracing (Hart 1996) steps along a ray by the signed distance. A lower bound of the distance cannot overshoot.
Every function takes a single scene and a single camera; use `lax.map` for many (a vmapped `lax.switch` runs every
branch).
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.shapeworld import scenes
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array, Camera, PyTree, Rays
from sds_jax.views import cameras

BOUND = scenes.SCENE_RADIUS + 0.02
"""Radius of the ball of the march, world units."""
MAX_STEPS = 64
TOLERANCE = 5e-4
"""Distance to the surface of a finished ray, world units."""
GRAZING = 4e-3
"""Largest distance to the surface of a hit after the last step, world units."""
TAP = 1e-3
"""Offset of the four points of a normal, world units."""


class Hit(PyTree):
  """Intersections of rays with a scene.

  Attributes:
    distance: [R], world units along the ray; meaningless for rays without a hit.
    mask: [R] bool, True for a hit.
    normals: [R, 3], unit, outward.
    albedo: [R, 3] in [0, 1].
  """
  distance: Array
  mask: Array
  normals: Array
  albedo: Array


def _pixel_rays(camera: Camera, size: int) -> Rays:
  return jax.tree.map(lambda leaf: leaf.reshape(-1, 3), cameras.camera_rays(camera, size, size))


def _bounds(rays: Rays) -> tuple[Array, Array]:
  """Returns distances [R] of entry and exit of the ball.

  For a miss near > far.
  """
  along = -jnp.sum(rays.origins * rays.directions, axis=-1)
  square = BOUND**2 - jnp.sum(rays.origins**2, axis=-1) + along**2
  # The clamp and far = -1 make a missing ray inactive without a NaN.
  half = jnp.sqrt(jnp.maximum(square, 0.0))
  return jnp.maximum(along - half, 0.0), jnp.where(square > 0, along + half, -1.0)


def _march(scene: SolidScene, rays: Rays) -> tuple[Array, Array]:
  """Marches rays to the surface or out of the ball.

  Returns:
    distance [R], hit [R] bool.
  """
  # Separate coordinate vectors are contiguous; slices of [R, 3] inside the loop are not.
  ox, oy, oz = (rays.origins[:, i] for i in range(3))
  dx, dy, dz = (rays.directions[:, i] for i in range(3))
  near, far = _bounds(rays)

  def unfinished(state):
    step, _, _, active = state
    return (step < MAX_STEPS) & jnp.any(active)

  def advance(state):
    step, t, last, active = state
    gap = scenes.distance(scene, ox + t * dx, oy + t * dy, oz + t * dz)
    # Finished rays keep their gap and their distance, so extra steps for other rays do not change them.
    last = jnp.where(active, gap, last)
    active = active & (gap > TOLERANCE)
    t = jnp.where(active, t + gap, t)
    return step + 1, t, last, active & (t < far)

  start = (jnp.int32(0), near, jnp.full_like(near, scenes.FAR), near < far)
  _, t, gap, _ = jax.lax.while_loop(unfinished, advance, start)
  # Rays along a surface slow down and can run out of steps just before a hit.
  return t, (gap < GRAZING) & (t < far)


def _normals(scene: SolidScene, x: Array, y: Array, z: Array) -> Array:
  """Computes outward unit normals [N, 3] by finite differences.

  The four points are the corners of a tetrahedron.
  """
  # Unlike the automatic derivative, the differences stay finite at edges and apexes.
  corners = jnp.array([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
  taps = [(axis[None] + TAP * corner[:, None]).ravel() for axis, corner in zip((x, y, z), corners.T)]
  gradient = scenes.distance(scene, *taps).reshape(4, -1).T @ corners
  return gradient / jnp.maximum(jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-12)


def trace(scene: SolidScene, rays: Rays) -> Hit:
  """Traces rays [R] to their first intersections with a scene.

  Rays may start inside or outside the ball of the scene.
  """
  t, mask = _march(scene, rays)
  points = rays.origins + t[:, None] * rays.directions
  x, y, z = points[:, 0], points[:, 1], points[:, 2]
  return Hit(t, mask, _normals(scene, x, y, z), scenes.albedo(scene, x, y, z))


def _pool(values: Array, size: int, factor: int) -> Array:
  """Averages over factor x factor blocks: [(size factor)^2, C] -> [size, size, C]."""
  return values.reshape(size, factor, size, factor, values.shape[-1]).mean(axis=(1, 3))


def render(scene: SolidScene, camera: Camera, light_position: Array, ambient: Array | float, diffuse: Array | float,
           background: Array, size: int = 64, supersample: int = 2) -> tuple[Array, Array]:
  """Renders an anti-aliased image of a scene under a point light.

  rgb = albedo (ambient + diffuse max(0, n . l)), Lambertian without shadows (DreamFusion, eq. 8). Ambient 1 with
  diffuse 0 shows the albedo only.

  Args:
    scene: without batch axes.
    camera: without batch axes.
    light_position: [3], world units.
    ambient: [] in [0, 1].
    diffuse: [] in [0, 1].
    background: [3] in [0, 1].
    size: height and width in pixels.
    supersample: rays per pixel and axis.

  Returns:
    image [size, size, 3] in [0, 1] and coverage [size, size] in [0, 1].
  """
  rays = _pixel_rays(camera, size * supersample)
  hit = trace(scene, rays)
  points = rays.origins + hit.distance[:, None] * rays.directions
  to_light = light_position[None] - points
  # The floor is for a light exactly on the surface.
  to_light = to_light / jnp.maximum(jnp.linalg.norm(to_light, axis=-1, keepdims=True), 1e-6)
  lambert = jnp.maximum(jnp.sum(hit.normals * to_light, axis=-1, keepdims=True), 0.0)
  rgb = jnp.clip(hit.albedo * (ambient + diffuse * lambert), 0.0, 1.0)
  # The background enters before the pooling, so edge pixels blend object and background by coverage.
  rgb = jnp.where(hit.mask[:, None], rgb, background[None])
  coverage = _pool(hit.mask[:, None].astype(rgb.dtype), size, supersample)[..., 0]
  return _pool(rgb, size, supersample), coverage


def silhouette(scene: SolidScene, camera: Camera, size: int = 64, supersample: int = 2) -> Array:
  """Computes the coverage [size, size] in [0, 1].

  Equal to the coverage of `render`.
  """
  _, mask = _march(scene, _pixel_rays(camera, size * supersample))
  return _pool(mask[:, None].astype(jnp.float32), size, supersample)[..., 0]
