"""The solids of ShapeWorld as signed distance functions, and their colours.

Every solid is a function of coordinates x, y, z (each [N], world units) and returns the signed distance [N], negative
inside. Distances are exact or lower bounds with Lipschitz constant 1, a condition of sphere tracing (Hart, "Sphere
tracing", 1996). Coordinates are separate vectors rather than [N, 3], so that a marching loop runs over contiguous
memory. A solid is centred at the origin and lies within the ball of radius 0.75.

Fronts face +x: the door of the house, the face and the buttons of the snowman, the open side of the chair (its backrest
is at -x). The handle of the mug is on +y, the right side of a front view.
"""
from __future__ import annotations

from typing import Callable

import jax.numpy as jnp

from sds_jax.types import Array

DistanceFn = Callable[[Array, Array, Array], Array]
"""(x [N], y [N], z [N]) -> signed distance [N]."""

PaintFn = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(x [N], y [N], z [N]) -> (weight [N] in [0, 1], colour [N, 3]): albedo = (1 - weight) body + weight colour."""

COLOURS: dict[str, tuple[float, float, float]] = {
  "red": (0.90, 0.06, 0.06),
  "green": (0.08, 0.65, 0.12),
  "blue": (0.08, 0.18, 0.90),
  "yellow": (0.95, 0.85, 0.08),
  "orange": (1.00, 0.45, 0.00),
  "purple": (0.48, 0.08, 0.72),
  "cyan": (0.08, 0.80, 0.90),
  "pink": (1.00, 0.50, 0.75),
}

BLACK = (0.03, 0.03, 0.03)
WOOD = (0.16, 0.08, 0.04)
CARROT = (0.95, 0.35, 0.02)

SPHERE_RADIUS = 0.6
CUBE_HALF = 0.4
CYLINDER_RADIUS, CYLINDER_HALF = 0.42, 0.5
CONE_RADIUS, CONE_BOTTOM, CONE_TOP = 0.5, -0.5, 0.6
TORUS_RADIUS, TORUS_TUBE = 0.43, 0.19
PYRAMID_HALF, PYRAMID_BOTTOM, PYRAMID_TOP = 0.45, -0.38, 0.6
CAPSULE_RADIUS, CAPSULE_HALF = 0.3, 0.35
"""The half length of the capsule counts the straight part only: the capsule spans -0.65 to 0.65."""


def _length(*components: Array) -> Array:
  # The derivative of sqrt is infinite at 0; the tracer takes differences instead.
  return jnp.sqrt(sum(component * component for component in components))


def _ball(x: Array, y: Array, z: Array, radius: float) -> Array:
  return _length(x, y, z) - radius


def _box(x: Array, y: Array, z: Array, half: tuple[float, float, float]) -> Array:
  """Computes the exact distance to a box with half edges `half`."""
  qx, qy, qz = jnp.abs(x) - half[0], jnp.abs(y) - half[1], jnp.abs(z) - half[2]
  # Outside, the distance to the nearest face, edge or corner; inside, minus the distance to the nearest face.
  outside = _length(jnp.maximum(qx, 0.0), jnp.maximum(qy, 0.0), jnp.maximum(qz, 0.0))
  return outside + jnp.minimum(jnp.maximum(qx, jnp.maximum(qy, qz)), 0.0)


def _rod(x: Array, y: Array, z: Array, radius: float, half: float) -> Array:
  """Computes the exact distance to a cylinder about the z axis."""
  q, qz = _length(x, y) - radius, jnp.abs(z) - half
  outside = _length(jnp.maximum(q, 0.0), jnp.maximum(qz, 0.0))
  return outside + jnp.minimum(jnp.maximum(q, qz), 0.0)


def _ring(x: Array, y: Array, z: Array, radius: float, tube: float) -> Array:
  """Computes the exact distance to a torus about the z axis."""
  return _length(_length(x, y) - radius, z) - tube


def _wedge(across: Array, z: Array, half: float, bottom: float, top: float) -> Array:
  """Bounds the distance to two roof planes and a floor from below."""
  # The largest of several plane distances is exact except outside, near edges and apex, where the bound is smaller.
  slope = top - bottom
  norm = (slope * slope + half * half) ** 0.5
  return jnp.maximum((jnp.abs(across) * slope + (z - top) * half) / norm, bottom - z)


def sphere(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to a ball."""
  return _ball(x, y, z, SPHERE_RADIUS)


def cube(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to an axis-aligned cube."""
  return _box(x, y, z, (CUBE_HALF, CUBE_HALF, CUBE_HALF))


def cylinder(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to an upright cylinder."""
  return _rod(x, y, z, CYLINDER_RADIUS, CYLINDER_HALF)


def cone(x: Array, y: Array, z: Array) -> Array:
  """Bounds the signed distance [N] to an upright cone from below."""
  return _wedge(_length(x, y), z, CONE_RADIUS, CONE_BOTTOM, CONE_TOP)


def torus(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to a flat torus.

  The hole has the radius 0.24.
  """
  return _ring(x, y, z, TORUS_RADIUS, TORUS_TUBE)


def pyramid(x: Array, y: Array, z: Array) -> Array:
  """Bounds the signed distance [N] to a square pyramid from below."""
  return _wedge(jnp.maximum(jnp.abs(x), jnp.abs(y)), z, PYRAMID_HALF, PYRAMID_BOTTOM, PYRAMID_TOP)


def capsule(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to an upright capsule."""
  return _ball(x, y, z - jnp.clip(z, -CAPSULE_HALF, CAPSULE_HALF), CAPSULE_RADIUS)


def house(x: Array, y: Array, z: Array) -> Array:
  """Bounds the signed distance [N] to a house from below.

  A box under a gable roof with its ridge along x; the door is painted on the +x wall.
  """
  walls = _box(x, y, z + 0.2, (0.4, 0.4, 0.27))
  roof = jnp.maximum(_wedge(y, z, 0.52, 0.06, 0.58), jnp.abs(x) - 0.45)
  return jnp.minimum(walls, roof)


def mug(x: Array, y: Array, z: Array) -> Array:
  """Bounds the signed distance [N] to a mug from below.

  A hollow cup, open above, with a handle on +y.
  """
  y = y + 0.1  # centres the cup together with its handle
  cup = _rod(x, y, z, 0.38, 0.42)
  handle = _ring(y - 0.4, z, x, 0.22, 0.06)
  # A maximum with the negated cavity subtracts the cavity, also from the part of the handle inside.
  return jnp.maximum(jnp.minimum(cup, handle), -_cavity(x, y, z))


def _cavity(x: Array, y: Array, z: Array) -> Array:
  return _rod(x, y, z - 0.2, 0.32, 0.55)


def chair(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to a chair, exact outside.

  The chair is a seat on four legs with a backrest at -x.
  """
  seat = _box(x, y, z + 0.03, (0.32, 0.32, 0.05))
  # abs mirrors a single leg into all four quadrants.
  legs = _box(jnp.abs(x) - 0.265, jnp.abs(y) - 0.265, z + 0.3, (0.055, 0.055, 0.25))
  back = _box(x + 0.27, y, z - 0.25, (0.05, 0.32, 0.31))
  return jnp.minimum(seat, jnp.minimum(legs, back))


def snowman(x: Array, y: Array, z: Array) -> Array:
  """Returns the signed distance [N] to a snowman, exact outside.

  The snowman is three balls, with a nose and two eyes at +x.
  """
  body = jnp.minimum(_ball(x, y, z + 0.36, 0.33), _ball(x, y, z - 0.1, 0.25))
  head = _ball(x, y, z - 0.45, 0.2)
  nearest = jnp.clip(x, 0.15, 0.34)  # on the axis of the nose, a horizontal capsule
  nose = _ball(x - nearest, y, z - 0.43, 0.04)
  return jnp.minimum(jnp.minimum(body, head), jnp.minimum(nose, _eyes(x, y, z)))


def _eyes(x: Array, y: Array, z: Array) -> Array:
  return _ball(x - 0.155, jnp.abs(y) - 0.085, z - 0.53, 0.045)


def _uniform_paint(weight: Array, colour: tuple[float, float, float]) -> tuple[Array, Array]:
  colours = jnp.stack([jnp.full_like(weight, channel) for channel in colour], axis=-1)
  return weight, colours


def _no_paint(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
  return _uniform_paint(jnp.zeros_like(x), BLACK)


def _paint_house(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
  """Paints a wooden door at +x and a darker roof."""
  door = (x > 0.39) & (jnp.abs(y) < 0.13) & (z < -0.1)
  roof = z > 0.055
  _, wood = _uniform_paint(x, WOOD)
  _, black = _uniform_paint(x, BLACK)
  weight = jnp.where(door, 1.0, jnp.where(roof, 0.45, 0.0)).astype(x.dtype)
  return weight, jnp.where(door[:, None], wood, black)


def _paint_mug(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
  """Paints the inside in a darker shade.

  The mug then looks hollow without shading.
  """
  inside = (_cavity(x, y + 0.1, z) < 0.005) & (z < 0.415)
  return _uniform_paint(0.45 * inside.astype(x.dtype), BLACK)


def _paint_snowman(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
  """Paints black eyes, black buttons and an orange nose."""
  nose = _length(y, z - 0.43) < 0.055
  nose = nose & (x > 0.18)  # the start of the nose, inside the head, keeps the colour of the body
  buttons = jnp.minimum(_ball(x - 0.25, y, z - 0.14, 0.05), _ball(x - 0.31, y, z + 0.26, 0.05))
  # The margins of 0.01 and 0.05 cover points found by the tracer slightly off the surface.
  black = (_eyes(x, y, z) < 0.01) | (buttons < 0.0)
  _, carrot = _uniform_paint(x, CARROT)
  _, coal = _uniform_paint(x, BLACK)
  weight = (nose | black).astype(x.dtype)
  return weight, jnp.where(nose[:, None], carrot, coal)


# `scenes` stores a kind by its index here, and `lax.switch` selects by the index: the order is part of every data set.
DISTANCES: dict[str, DistanceFn] = {
  "sphere": sphere, "cube": cube, "cylinder": cylinder, "cone": cone, "torus": torus, "pyramid": pyramid,
  "capsule": capsule, "house": house, "mug": mug, "chair": chair, "snowman": snowman,
}
"""Kind -> distance function, in the order of `KINDS`."""

PAINTS: dict[str, PaintFn] = {**{kind: _no_paint for kind in DISTANCES},
                              "house": _paint_house, "mug": _paint_mug, "snowman": _paint_snowman}
"""Kind -> accents over the colour of the body, in the order of `KINDS`."""

KINDS: tuple[str, ...] = tuple(DISTANCES)
FRONTED: frozenset[str] = frozenset({"house", "mug", "chair", "snowman"})
"""Kinds with a front (+x) and a back."""
PLAIN: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in FRONTED)
"""Stackable kinds."""
