"""A second definition of the solids of ShapeWorld: numpy predicates "is the point inside?", without distances."""
import numpy as np
import pytest


def _within(value, low, high):
  return (low < value) & (value < high)


def _house(x, y, z):
  walls = (abs(x) < 0.4) & (abs(y) < 0.4) & _within(z, -0.47, 0.07)
  roof = (abs(x) < 0.45) & _within(z, 0.06, 0.58) & (abs(y) < 0.52 * (0.58 - z) / 0.52)
  return walls | roof


def _mug(x, y, z):
  rho = np.hypot(x, y + 0.1)
  cup = (rho < 0.38) & (abs(z) < 0.42)
  handle = (np.hypot(y - 0.3, z) - 0.22) ** 2 + x**2 < 0.06**2
  return (cup | handle) & ~((rho < 0.32) & _within(z, -0.35, 0.75))


def _chair(x, y, z):
  seat = (abs(x) < 0.32) & (abs(y) < 0.32) & _within(z, -0.08, 0.02)
  legs = _within(abs(x), 0.21, 0.32) & _within(abs(y), 0.21, 0.32) & _within(z, -0.55, -0.05)
  back = _within(x, -0.32, -0.22) & (abs(y) < 0.32) & _within(z, -0.06, 0.56)
  return seat | legs | back


def _snowman(x, y, z):
  def ball(cx, cy, cz, radius):
    return (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < radius**2
  nose = _within(x, 0.15, 0.34) & (np.hypot(y, z - 0.43) < 0.04) | ball(0.15, 0, 0.43, 0.04) | ball(0.34, 0, 0.43, 0.04)
  eyes = ball(0.155, 0.085, 0.53, 0.045) | ball(0.155, -0.085, 0.53, 0.045)
  return ball(0, 0, -0.36, 0.33) | ball(0, 0, 0.1, 0.25) | ball(0, 0, 0.45, 0.2) | nose | eyes


@pytest.fixture(scope="session")
def inside():
  """Returns kind -> predicate of numpy coordinates x, y, z."""
  return {
    "sphere": lambda x, y, z: x * x + y * y + z * z < 0.36,
    "cube": lambda x, y, z: np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 0.4,
    "cylinder": lambda x, y, z: (np.hypot(x, y) < 0.42) & (abs(z) < 0.5),
    "cone": lambda x, y, z: (z > -0.5) & (np.hypot(x, y) < 0.5 * (0.6 - z) / 1.1),
    "torus": lambda x, y, z: (np.hypot(x, y) - 0.43) ** 2 + z * z < 0.19**2,
    "pyramid": lambda x, y, z: (z > -0.38) & (np.maximum(abs(x), abs(y)) < 0.45 * (0.6 - z) / 0.98),
    "capsule": lambda x, y, z: x * x + y * y + np.maximum(abs(z) - 0.35, 0) ** 2 < 0.09,
    "house": _house, "mug": _mug, "chair": _chair, "snowman": _snowman,
  }
