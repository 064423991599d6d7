"""Scenes: one solid, or one on top of another, as arrays that stack, with their signed distance and albedo."""
from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.shapeworld import solids
from sds_jax.shapeworld.captions import Spec, parse
from sds_jax.types import Array

NONE = len(solids.KINDS)
"""The kind index of an empty slot."""
FAR = 10.0
"""The distance to an empty slot."""
PAIR_HEIGHT, MAX_PAIR_SCALE = 1.36, 0.7
"""A stack is scaled to this height (world units), but its solids not beyond this scale."""
SUNK = 0.02
"""How deep the upper of two solids is pressed into the lower, world units, so that they are one piece."""
SCENE_RADIUS = 0.8
"""Every scene lies within the ball of this radius around the origin."""


@flax.struct.dataclass
class SolidScene:
  """Up to two solids. Leading batch axes are allowed on every leaf.

  Attributes:
    kind: [2] int32, index into `solids.KINDS`; `NONE` for an empty slot.
    albedo: [2, 3] in [0, 1], the colour of the body.
    offset: [2, 3], world units.
    scale: [2], size relative to the canonical solid.
  """
  kind: Array
  albedo: Array
  offset: Array
  scale: Array


def _local(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
  offset, scale = scene.offset[slot], scene.scale[slot]
  return (x - offset[0]) / scale, (y - offset[1]) / scale, (z - offset[2]) / scale


def _slot_distance(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> Array:
  branches = [*solids.DISTANCES.values(), lambda x, y, z: jnp.full_like(x, FAR)]
  return scene.scale[slot] * jax.lax.switch(scene.kind[slot], branches, *_local(scene, slot, x, y, z))


def distance(scene: SolidScene, x: Array, y: Array, z: Array) -> Array:
  """Signed distance [N] of one scene at coordinates x, y, z (each [N], world units); a lower bound, Lipschitz 1.

  `lax.switch` runs one branch a slot as long as the scene is not vmapped: use `lax.map` over scenes.
  """
  return jnp.minimum(_slot_distance(scene, 0, x, y, z), _slot_distance(scene, 1, x, y, z))


def _slot_albedo(scene: SolidScene, slot: int, x: Array, y: Array, z: Array) -> Array:
  branches = [*solids.PAINTS.values(), solids.PAINTS["sphere"]]
  weight, colour = jax.lax.switch(scene.kind[slot], branches, *_local(scene, slot, x, y, z))
  weight = weight[:, None]
  return (1.0 - weight) * scene.albedo[slot][None] + weight * colour


def albedo(scene: SolidScene, x: Array, y: Array, z: Array) -> Array:
  """Albedo [N, 3] of the solid nearest to each point, at coordinates x, y, z (each [N], world units)."""
  first_is_nearer = _slot_distance(scene, 0, x, y, z) <= _slot_distance(scene, 1, x, y, z)
  return jnp.where(first_is_nearer[:, None], _slot_albedo(scene, 0, x, y, z), _slot_albedo(scene, 1, x, y, z))


def sdf(scene: SolidScene, points: Array) -> tuple[Array, Array]:
  """Signed distance [N] and albedo [N, 3] of one scene at points [N, 3], world units."""
  x, y, z = points[:, 0], points[:, 1], points[:, 2]
  return distance(scene, x, y, z), albedo(scene, x, y, z)


def rotate_points_z(points: Array, azimuth: Array | float) -> Array:
  """Points [..., 3] turned counter-clockwise (seen from above) about z by `azimuth` radians (scalar)."""
  cos, sin = jnp.cos(azimuth), jnp.sin(azimuth)
  x, y, z = points[..., 0], points[..., 1], points[..., 2]
  return jnp.stack([cos * x - sin * y, sin * x + cos * y, z], axis=-1)


def _dome(radius: float, across: np.ndarray) -> np.ndarray:
  return np.where(across <= radius, np.sqrt(np.maximum(radius**2 - across**2, 0.0)), -np.inf)


def _roof(half: float, bottom: float, top: float, across: np.ndarray) -> np.ndarray:
  return np.where(across <= half, top - (top - bottom) * across / half, -np.inf)


def _upper_surface(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Height of the upper surface of a plain solid over the ground points (x, y); -inf where it is not above them."""
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
  """Height of the lower surface of a plain solid; +inf where it has none. Flat under a cone and a pyramid."""
  upper = _upper_surface(kind, x, y)
  bottom = {"cone": solids.CONE_BOTTOM, "pyramid": solids.PYRAMID_BOTTOM}.get(kind)
  return -upper if bottom is None else np.where(np.isinf(upper), np.inf, bottom)


@functools.lru_cache(maxsize=None)
def stacking(top: str, bottom: str) -> tuple[float, float, float]:
  """How two plain solids stand one on the other: (scale of both, height of the upper's centre, of the lower's).

  The upper solid is let down along z until the first points touch (so a ball sits in a ring's hole, and a ring slips
  over a cone), then sunk by `SUNK`; the pair is scaled to `PAIR_HEIGHT` or `MAX_PAIR_SCALE`, and centred.
  """
  axis = np.linspace(-0.65, 0.65, 261)
  x, y = np.meshgrid(axis, axis)
  surfaces = [(_lower_surface(kind, x, y), _upper_surface(kind, x, y)) for kind in (bottom, top)]
  lift = np.max(surfaces[0][1] - surfaces[1][0])
  low = min(np.min(surfaces[0][0]), lift + np.min(surfaces[1][0]))
  high = max(np.max(surfaces[0][1]), lift + np.max(surfaces[1][1]))
  scale = min(MAX_PAIR_SCALE, PAIR_HEIGHT / (high - low))
  middle = (scale * (low + high) - SUNK) / 2
  return float(scale), float(scale * lift - SUNK - middle), float(-middle)


def scene_from_spec(spec: Spec) -> SolidScene:
  """The scene (numpy leaves) that a spec describes; the first part is the upper one."""
  kinds = [solids.KINDS.index(kind) for _, kind in spec.parts]
  colours = [solids.COLOURS[colour] for colour, _ in spec.parts]
  scale, *heights = stacking(spec.parts[0][1], spec.parts[1][1]) if len(spec.parts) == 2 else (1.0, 0.0, 0.0)
  return SolidScene(
    kind=np.array((kinds + [NONE])[:2], np.int32),
    albedo=np.array((colours + [(0.0, 0.0, 0.0)])[:2], np.float32),
    offset=np.array([[0.0, 0.0, height] for height in heights], np.float32),
    scale=np.full((2,), scale, np.float32))


def scene_from_caption(caption: str) -> SolidScene:
  """The scene (numpy leaves) of a caption such as "a green cone on top of a blue cylinder".

  Raises:
    CaptionError: the caption is not of the grammar.
  """
  return scene_from_spec(parse(caption))


def stack_scenes(scenes: list[SolidScene]) -> SolidScene:
  """One scene with a leading axis [B] from B scenes."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *scenes)
