"""Tests the textured solids: intersections of rays, texel coordinates, and renders of a known texture."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.generators import surfaces
from sds_jax.generators.texture import make_texture
from sds_jax.types import Rays
from sds_jax.views import cameras


def march(inside, origin, direction):
  """Returns the first point of a ray inside a solid by small steps and bisection; None where the ray misses."""
  ts = np.linspace(0.0, 6.0, 6001)
  within = inside(origin + ts[:, None] * direction)
  if not within.any():
    return None
  high = ts[within.argmax()]
  low = high - 1e-3
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (low, middle) if inside(origin + middle * direction) else (middle, high)
  return origin + high * direction


SOLIDS = {"sphere": lambda p: np.linalg.norm(p, axis=-1) <= 0.5, "cube": lambda p: np.abs(p).max(-1) <= 0.5}


@pytest.mark.parametrize("shape", SOLIDS)
def test_intersections_match_marching(shape):
  rng = np.random.default_rng(0)
  origins = rng.normal(size=(60, 3))
  origins *= 2.0 / np.linalg.norm(origins, axis=1, keepdims=True)
  directions = 0.45 * rng.normal(size=(60, 3)) - origins
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  surface, _, _, _ = surfaces.SURFACES[shape]
  rays = Rays(jnp.asarray(origins, jnp.float32), jnp.asarray(directions, jnp.float32))
  hit, chart, uv = (np.asarray(a) for a in jax.jit(lambda rays: surface(rays, 0.5))(rays))
  assert 5 < hit.sum() < 60
  for i in range(60):
    point = march(SOLIDS[shape], origins[i], directions[i])
    assert (point is not None) == hit[i]
    if point is None:
      continue
    if shape == "sphere":
      polar = math.acos(np.clip(point[2] / 0.5, -1, 1))
      expected = (math.atan2(point[1], point[0]) / (2 * math.pi) % 1.0, polar / math.pi)
    else:
      axis = int(np.abs(point).argmax())
      assert chart[i] == 2 * axis + (point[axis] < 0)
      x, y, z = point
      right = (y, -y, -x, x, y, y)[chart[i]]
      down = (-z, -z, -z, -z, x, -x)[chart[i]]
      expected = (right + 0.5, down + 0.5)
    gap = np.abs(np.asarray(expected) - uv[i])
    assert min(gap[0], 1 - gap[0]) < 2e-3 and gap[1] < 2e-3


def test_lookup_is_bilinear():
  rng = np.random.default_rng(1)
  texture = rng.uniform(size=(2, 3, 4, 2))
  uv, chart = rng.uniform(size=(50, 2)), rng.integers(0, 2, 50)
  for closed in (False, True):
    interpolated = np.asarray(jax.jit(surfaces.lookup, static_argnums=3)(
        texture.astype(np.float32), chart.astype(np.int32), uv.astype(np.float32), closed))
    for k in range(50):
      total = np.zeros(2)
      x, y = uv[k, 0] * 4 - 0.5, uv[k, 1] * 3 - 0.5
      for i in range(-1, 5):
        for j in range(-1, 4):
          weight = max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j))
          total += weight * texture[chart[k], min(max(j, 0), 2), i % 4 if closed else min(max(i, 0), 3)]
      np.testing.assert_allclose(interpolated[k], total, atol=1e-5)


def test_plain_texture_on_the_disc_and_the_reported_camera():
  generator = make_texture(24, shape="sphere", extent=0.5, resolution=8)
  shapes = jax.eval_shape(generator.init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)  # sigmoid(0) = 0.5 everywhere
  key = jax.random.key(2)
  image = np.asarray(jax.jit(generator.apply)(params, key))[0]
  draw_cameras = jax.jit(generator.cameras)
  camera = jax.tree.map(lambda leaf: leaf[0], jax.device_get(draw_cameras(key)))
  hit, _, _ = jax.jit(lambda camera: surfaces.sphere(cameras.camera_rays(camera, 24, 24), 0.5))(camera)
  np.testing.assert_allclose(image[np.asarray(hit)], 0.5, atol=1e-6)
  outside = image[~np.asarray(hit)]
  assert 10 < np.asarray(hit).sum() < 400 and np.ptp(outside, axis=0).max() == 0.0
  other = draw_cameras(jax.random.key(3))
  assert not np.allclose(other.position, camera.position[None])


def test_extra_images():
  generator = make_texture(16, shape="cube", resolution=8)
  extras = jax.eval_shape(lambda key: generator.extras(generator.init(key)), jax.random.key(0))
  assert extras["texture"].shape == (8, 48, 3) and extras["views"].shape == (16, 128, 3)
