"""The tracer against a slow numpy marcher, closed-form silhouettes and closed-form shading."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.shapeworld import scenes, solids, tracer
from sds_jax.types import Rays
from sds_jax.views import cameras

DISTANCE, FOV = 2.7, math.radians(46.0)
FOCAL = 0.5 / math.tan(FOV / 2)
GREY = np.full(3, 0.5, np.float32)
render = jax.jit(tracer.render, static_argnames=("size", "supersample"))
trace = jax.jit(tracer.trace)


def _camera(azimuth=0.0, elevation=0.0):
  return cameras.orbit(math.radians(azimuth), math.radians(elevation), DISTANCE, FOV)


def _image(text, camera, ambient=1.0, light=(0.0, 0.0, 5.0), background=GREY):
  scene = scenes.scene_from_caption(text)
  image, coverage = render(scene, camera, jnp.array(light), ambient, 1.0 - ambient, background)
  return np.asarray(image), np.asarray(coverage)


def _rays(seed=0, n=1024):
  """Draws rays from all sides towards the object."""
  rng = np.random.default_rng(seed)
  origins = rng.normal(size=(n, 3))
  origins *= 2.5 / np.linalg.norm(origins, axis=1, keepdims=True)
  directions = rng.uniform(-0.5, 0.5, (n, 3)) - origins
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  return Rays(origins.astype(np.float32), directions.astype(np.float32))


@pytest.mark.parametrize("kind", solids.KINDS)
def test_hits_agree_with_a_slow_march_over_the_second_definition(kind, inside):
  rays = _rays()
  hit = jax.device_get(trace(scenes.scene_from_caption(f"a red {kind}"), rays))
  along = np.arange(1.6, 3.4, 2e-3)
  points = rays.origins[:, None].astype(np.float64) + along[None, :, None] * rays.directions[:, None]
  solid = inside[kind](points[..., 0], points[..., 1], points[..., 2])
  slow_mask, slow_distance = solid.any(axis=1), along[solid.argmax(axis=1)]
  assert np.mean(hit.mask != slow_mask) < 0.01  # rays that graze the surface
  both = hit.mask & slow_mask
  depth_below = np.abs((hit.distance - slow_distance) * np.sum(hit.normals * rays.directions, axis=1))[both]
  assert both.sum() > 100 and np.mean(depth_below < 3e-3) > 0.98


@pytest.mark.parametrize("kind", solids.KINDS)
def test_normals_are_unit_and_outward(kind, inside):
  rays = _rays(seed=1)
  hit = jax.device_get(trace(scenes.scene_from_caption(f"a red {kind}"), rays))
  points = (rays.origins + hit.distance[:, None] * rays.directions)[hit.mask].astype(np.float64)
  normals = hit.normals[hit.mask]
  np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)
  assert np.mean(inside[kind](*(points - 0.01 * normals).T)) > 0.98
  assert np.mean(inside[kind](*(points + 0.01 * normals).T)) < 0.02
  if kind == "sphere":
    np.testing.assert_allclose(normals, points / np.linalg.norm(points, axis=1, keepdims=True), atol=2e-3)


def test_silhouette_of_a_ball_is_the_closed_form_disc():
  _, coverage = _image("a red sphere", _camera(30.0, 20.0))
  radius = FOCAL * 0.6 / math.sqrt(DISTANCE**2 - 0.6**2)  # in image heights: the cone of tangents
  np.testing.assert_allclose(coverage.mean(), math.pi * radius**2, rtol=0.01)


def test_silhouette_of_a_cube_seen_frontally_is_its_front_face():
  _, coverage = _image("a red cube", _camera())
  np.testing.assert_allclose(coverage.mean(), (FOCAL * 0.8 / (DISTANCE - 0.4)) ** 2, rtol=0.02)


def test_silhouette_is_the_coverage_of_the_image_and_is_anti_aliased():
  scene, camera = scenes.scene_from_caption("a red cone on top of a blue torus"), _camera(40.0, 30.0)
  _, coverage = _image("a red cone on top of a blue torus", camera)
  np.testing.assert_array_equal(jax.jit(tracer.silhouette)(scene, camera), coverage)
  assert {*np.unique(coverage)} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_torus_has_a_hole_from_above():
  _, coverage = _image("a red torus", _camera(0.0, 90.0))
  assert coverage[32, 32] == 0.0 and coverage[32].max() == 1.0


def test_rows_go_down_and_columns_to_the_right():
  _, coverage = _image("a red cone", _camera())
  rows = coverage.sum(axis=1)
  assert rows[40:48].sum() > 2 * rows[16:24].sum()
  _, coverage = _image("a red mug", _camera(0.0))
  columns = coverage.sum(axis=0)
  assert columns[46:].sum() > columns[:18].sum()  # the handle is on +y, which a camera on +x sees on its right
  _, mirrored = _image("a red mug", _camera(180.0))
  np.testing.assert_allclose(mirrored[:, ::-1], coverage, atol=0.51)
  assert np.mean(mirrored[:, ::-1] != coverage) < 0.03


def test_fronts_face_azimuth_0_and_backs_face_180():
  for kind in ("house", "snowman"):
    front, back = (_image(f"a yellow {kind}", _camera(azimuth), background=np.ones(3, np.float32))[0]
                   for azimuth in (0.0, 180.0))
    dark_front, dark_back = (np.sum(image.max(axis=-1) < 0.4) for image in (front, back))
    assert dark_front >= 8 and dark_back == 0


def test_albedo_only_shows_the_colour_and_the_background():
  image, coverage = _image("a purple capsule", _camera(70.0, 10.0))
  full, empty = coverage == 1.0, coverage == 0.0
  np.testing.assert_allclose(image[full], np.broadcast_to(solids.COLOURS["purple"], (full.sum(), 3)), atol=1e-6)
  np.testing.assert_allclose(image[empty], 0.5, atol=1e-6)
  mixed = coverage[..., None] * np.array(solids.COLOURS["purple"]) + (1 - coverage[..., None]) * 0.5
  np.testing.assert_allclose(image, mixed, atol=1e-5)


def test_shading_of_a_ball_is_lambertian():
  light, ambient = np.array([1.0, 2.0, 1.5]), 0.3
  camera = _camera(20.0, 15.0)
  image, coverage = _image("a pink sphere", camera, ambient, tuple(light))
  rays = jax.device_get(cameras.camera_rays(camera, 64, 64))
  origin, directions = rays.origins[0, 0].astype(np.float64), rays.directions.astype(np.float64)
  along = directions @ origin
  depth = -along - np.sqrt(np.maximum(along**2 - (origin @ origin - 0.36), 0))
  points = origin + depth[..., None] * directions
  to_light = light - points
  cosine = np.sum(points / 0.6 * to_light, axis=-1) / np.linalg.norm(to_light, axis=-1)
  expected = np.array(solids.COLOURS["pink"]) * (ambient + (1 - ambient) * np.maximum(cosine, 0))[..., None]
  inner = (coverage == 1.0) & (np.sum(directions * points, axis=-1) < -0.3)  # away from the rim
  assert inner.sum() > 300 and np.sum(inner & (cosine < 0)) > 20 and np.sum(inner & (cosine > 0.5)) > 100
  np.testing.assert_allclose(image[inner], expected[inner], atol=0.01)


def test_no_scene_leaves_the_frame():
  camera = cameras.orbit(0.3, 0.2, 2.4, math.radians(42.0))
  for text in ("a red capsule on top of a blue capsule", "a red pyramid on top of a blue pyramid", "a red chair"):
    _, coverage = _image(text, camera)
    rim = np.concatenate([coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]])
    assert rim.max() == 0.0 and coverage.max() == 1.0
