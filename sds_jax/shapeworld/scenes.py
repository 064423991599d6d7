"""Scenes of a solid or a stack of two as stackable arrays, with their signed distance and albedo."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.shapeworld import solids
from sds_jax.shapeworld.captions import Spec, parse
from sds_jax.types import Array, PyTree

NONE = len(solids.KINDS)
"""Kind index of an empty slot."""
FAR = 10.0
"""Distance to an empty slot, world units."""
PAIR_HEIGHT, MAX_PAIR_SCALE = 1.36, 0.7
"""Height of a scaled stack (world units), and the largest scale of its solids."""
SUNK = 0.02
"""Depth of the upper solid in the lower, world units; the overlap joins both into a single piece."""
SCENE_RADIUS = 0.8
"""Radius of a ball around the origin with every scene inside, world units."""


class SolidScene(PyTree):
  """A scene of up to two solids.

  Every leaf may have leading batch axes.

  Attributes:
    kind: [2] int32, index into `solids.KINDS`, or `NONE` for an empty slot.
    albedo: [2, 3] in [0, 1], colours of the bodies.
    offset: [2, 3] positions, world units.
    scale: [2] sizes relative to the canonical solids.
  """
  kind: Array
  albedo: Array
  offset: Array
  scale: Array


def _local_coordinates(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
  offset, scale = scene.offset[slot], scene.scale[slot]
  return (x - offset[0]) / scale, (y - offset[1]) / scale, (z - offset[2]) / scale


def _slot_distance(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> Array:
  branches = [*solids.DISTANCES.values(), lambda x, y, z: jnp.full_like(x, FAR)]
  # Distances shrink with the coordinates, so the scale is multiplied back and the Lipschitz constant stays 1.
  return scene.scale[slot] * jax.lax.switch(scene.kind[slot], branches, *_local_coordinates(scene, slot, x, y, z))


def distance(scene: SolidScene, x: Array, y: Array, z: Array) -> Array:
  """Computes the signed distance [N] of a single scene.

  The distance is a lower bound with Lipschitz constant 1.

  Args:
    scene: without batch axes; use `lax.map` for many scenes, because a vmapped `lax.switch` runs every branch.
    x, y, z: coordinates, each [N], world units.
  """
  return jnp.minimum(_slot_distance(scene, 0, x, y, z), _slot_distance(scene, 1, x, y, z))


def _slot_albedo(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> Array:
  branches = [*solids.PAINTS.values(), solids.PAINTS["sphere"]]  # the last branch serves empty slots
  weight, colour = jax.lax.switch(scene.kind[slot], branches, *_local_coordinates(scene, slot, x, y, z))
  weight = weight[:, None]
  return (1.0 - weight) * scene.albedo[slot][None] + weight * colour


def albedo(scene: SolidScene, x: Array, y: Array, z: Array) -> Array:
  """Returns the albedo [N, 3] of the solid nearest to each point.

  Args:
    scene: without batch axes.
    x, y, z: coordinates, each [N], world units.
  """
  # Both albedos are computed and selected by `where`, since every point can have another nearest solid.
  first_is_nearer = _slot_distance(scene, 0, x, y, z) <= _slot_distance(scene, 1, x, y, z)
  return jnp.where(first_is_nearer[:, None], _slot_albedo(scene, 0, x, y, z), _slot_albedo(scene, 1, x, y, z))


def sdf(scene: SolidScene, points: Array) -> tuple[Array, Array]:
  """Computes signed distance [N] and albedo [N, 3] at points [N, 3]."""
  x, y, z = points[:, 0], points[:, 1], points[:, 2]
  return distance(scene, x, y, z), albedo(scene, x, y, z)


def rotate_points_z(points: Array, azimuth: Array | float) -> Array:
  """Rotates points [..., 3] about z by `azimuth` radians.

  Seen from above the rotation is counter-clockwise.
  """
  cos, sin = jnp.cos(azimuth), jnp.sin(azimuth)
  x, y, z = points[..., 0], points[..., 1], points[..., 2]
  return jnp.stack([cos * x - sin * y, sin * x + cos * y, z], axis=-1)


def _dome(radius: float, across: np.ndarray) -> np.ndarray:
  return np.where(across <= radius, np.sqrt(np.maximum(radius**2 - across**2, 0.0)), -np.inf)


def _roof(half: float, bottom: float, top: float, across: np.ndarray) -> np.ndarray:
  return np.where(across <= half, top - (top - bottom) * across / half, -np.inf)


def _upper_surface(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns heights of the upper surface of a plain solid; -inf outside the solid.

  Args:
    kind: of the solid.
    x, y: ground points, world units of the canonical solid.
  """
  # The closed forms repeat `solids`, because a distance function does not give heights directly.
  rho, square = np.hypot(x, y), np.maximum(np.abs(x), np.abs(y))
  return {
    "sphere": lambda: _dome(solids.SPHERE_RADIUS, rho),
    "cube": lambda: np.where(square <= solids.CUBE_HALF, solids.CUBE_HALF, -np.inf),
    "cylinder": lambda: np.where(rho <= solids.CYLINDER_RADIUS, solids.CYLINDER_HALF, -np.inf),
    "cone": lambda: _roof(solids.CONE_RADIUS, solids.CONE_BOTTOM, solids.CONE_TOP, rho),
    "torus": lambda: _dome(solids.TORUS_TUBE, np.abs(rho - solids.TORUS_RADIUS)),
    "pyramid": lambda: _roof(solids.PYRAMID_HALF, solids.PYRAMID_BOTTOM, solids.PYRAMID_TOP, square),
    "capsule": lambda: solids.CAPSULE_HALF + _dome(solids.CAPSULE_RADIUS, rho),
  }[kind]()


def _lower_surface(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns heights of the lower surface; +inf outside the solid."""
  # Cone and pyramid have flat bottoms; all other plain solids are symmetric about z = 0.
  upper = _upper_surface(kind, x, y)
  bottom = {"cone": solids.CONE_BOTTOM, "pyramid": solids.PYRAMID_BOTTOM}.get(kind)
  return -upper if bottom is None else np.where(np.isinf(upper), np.inf, bottom)


@functools.lru_cache(maxsize=None)
def stacking(top: str, bottom: str) -> tuple[float, float, float]:
  """Computes the placement of two plain solids in a stack.

  The upper solid descends along z to the first contact (a ball rests in the hole of a ring, a ring slips over a cone),
  then sinks by `SUNK`. The pair is scaled to `PAIR_HEIGHT`, at most by `MAX_PAIR_SCALE`, and centred.

  Returns:
    scale of both solids, height of the centre of the upper solid, height of the centre of the lower solid.
  """
  axis = np.linspace(-0.65, 0.65, 261)
  x, y = np.meshgrid(axis, axis)
  surfaces = [(_lower_surface(kind, x, y), _upper_surface(kind, x, y)) for kind in (bottom, top)]
  # The contact height is the largest gap between the facing surfaces; -inf and +inf outside the solids drop out.
  lift = np.max(surfaces[0][1] - surfaces[1][0])
  low = min(np.min(surfaces[0][0]), lift + np.min(surfaces[1][0]))
  high = max(np.max(surfaces[0][1]), lift + np.max(surfaces[1][1]))
  scale = min(MAX_PAIR_SCALE, PAIR_HEIGHT / (high - low))
  middle = (scale * (low + high) - SUNK) / 2
  return float(scale), float(scale * lift - SUNK - middle), float(-middle)


def scene_from_spec(spec: Spec) -> SolidScene:
  """Builds the scene of a spec, with numpy leaves.

  The first part of the spec is the upper solid.
  """
  kinds = [solids.KINDS.index(kind) for _, kind in spec.parts]
  colours = [solids.COLOURS[colour] for colour, _ in spec.parts]
  # `stacking` is cached: 49 pairs serve all data sets.
  scale, *heights = stacking(spec.parts[0][1], spec.parts[1][1]) if len(spec.parts) == 2 else (1.0, 0.0, 0.0)
  # Single objects fill the second slot with `NONE`, so all scenes have the same shapes and stack.
  return SolidScene(
    kind=np.array((kinds + [NONE])[:2], np.int32),
    albedo=np.array((colours + [(0.0, 0.0, 0.0)])[:2], np.float32),
    offset=np.array([[0.0, 0.0, height] for height in heights], np.float32),
    scale=np.full((2,), scale, np.float32))


def scene_from_caption(caption: str) -> SolidScene:
  """Builds the scene of a caption, with numpy leaves.

  Raises:
    CaptionError: the caption is outside the grammar.
  """
  return scene_from_spec(parse(caption))


def stack_scenes(scenes: list[SolidScene]) -> SolidScene:
  """Stacks B scenes into leaves [B, ...]."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *scenes)
