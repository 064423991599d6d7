"""Cameras against their definitions, an independent projection, and the stated distributions."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sds_jax.views import cameras
from sds_jax.views.cameras import CameraDistribution

N = 4000


@pytest.fixture(scope="module")
def samples():
  keys = jax.random.split(jax.random.key(0), N)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(cameras.sample_camera))(keys))


def test_rotations_are_orthonormal_and_right_handed(samples):
  rotation = samples[0].rotation
  np.testing.assert_allclose(np.einsum("nij,nik->njk", rotation, rotation), np.tile(np.eye(3), (N, 1, 1)), atol=2e-6)
  np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=2e-6)


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.3, -0.2, 2.0)])
def test_look_at_points_at_the_target_and_is_upright(up):
  position, target, up = np.float32([1.0, -2.0, 0.7]), np.float32([0.1, 0.2, -0.3]), np.float32(up)
  right, top, backward = np.asarray(cameras.look_at(*map(jnp.asarray, (position, target, up)))).T
  np.testing.assert_allclose(np.cross(target - position, -backward), 0.0, atol=1e-6)
  assert (position - target) @ backward > 0 and top @ up > 0 and abs(right @ up) < 1e-6


def test_look_at_along_up_is_still_a_rotation():
  rotation = np.asarray(cameras.look_at(jnp.array([0.0, 0.0, 3.0]), jnp.zeros(3), jnp.array([0.0, 0.0, 1.0])))
  np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("azimuth, position", [(0.0, (2, 0, 0)), (math.pi / 2, (0, 2, 0)), (math.pi, (-2, 0, 0))])
def test_azimuth_grows_counter_clockwise_from_the_front(azimuth, position):
  np.testing.assert_allclose(cameras.orbit(azimuth, 0.0, 2.0, 0.8).position, position, atol=1e-6)


def test_orbit_is_upright_and_continuous_over_the_pole():
  below = cameras.orbit(0.3, math.pi / 2 - 1e-3, 2.0, 0.8)
  above = cameras.orbit(0.3, math.pi / 2, 2.0, 0.8)
  np.testing.assert_allclose(above.rotation, below.rotation, atol=2e-3)
  world_up = cameras.look_at(cameras.orbit(0.3, 0.5, 2.0, 0.8).position, jnp.zeros(3), jnp.array([0.0, 0.0, 1.0]))
  np.testing.assert_allclose(cameras.orbit(0.3, 0.5, 2.0, 0.8).rotation, world_up, atol=1e-6)


def test_rays_meet_the_points_that_project_to_their_pixels():
  height, width = 6, 10
  camera = cameras.orbit(0.7, 0.4, 2.5, 0.9, target=(0.1, -0.2, 0.05))
  rays = jax.tree.map(np.asarray, cameras.camera_rays(camera, height, width))
  np.testing.assert_allclose(np.linalg.norm(rays.directions, axis=-1), 1.0, atol=1e-6)
  points = (rays.origins + 1.7 * rays.directions).astype(np.float64).reshape(-1, 3)
  world_to_camera = np.eye(4)
  world_to_camera[:3, :3] = np.asarray(camera.rotation).T
  world_to_camera[:3, 3] = -np.asarray(camera.rotation).T @ np.asarray(camera.position)
  x, y, z, _ = world_to_camera @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
  focal_pixels = height * 0.5 / math.tan(0.45)
  columns, rows = width / 2 + focal_pixels * x / -z, height / 2 - focal_pixels * y / -z
  expected = np.stack(np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij"), axis=-1)
  np.testing.assert_allclose(np.stack([rows, columns], axis=-1), expected.reshape(-1, 2), atol=1e-4)


def test_front_view_has_left_of_object_on_the_right():
  # Seen from +x with z up, +y is to the viewer's right.
  rays = cameras.camera_rays(cameras.orbit(0.0, 0.0, 2.0, 0.8), 4, 4)
  assert rays.directions[0, 3, 1] > 0 and rays.directions[0, 3, 2] > 0 and rays.directions[3, 0, 1] < 0


def test_azimuth_is_uniform(samples):
  counts, _ = np.histogram(samples[1], bins=16, range=(0, 2 * np.pi))
  assert counts.sum() == N and stats.chisquare(counts).pvalue > 1e-3


def test_elevation_mixes_uniform_angle_and_uniform_area(samples):
  low, high = np.deg2rad(-10.0), np.deg2rad(90.0)
  edges = np.linspace(low, high, 13)
  area = (np.sin(edges) - np.sin(low)) / (np.sin(high) - np.sin(low))
  angle = (edges - low) / (high - low)
  counts, _ = np.histogram(samples[2], bins=edges)
  assert counts.sum() == N
  assert stats.chisquare(counts, N * np.diff(0.5 * angle + 0.5 * area)).pvalue > 1e-3
  assert stats.chisquare(counts, N * np.diff(angle)).pvalue < 1e-3  # neither distribution alone fits
  assert stats.chisquare(counts, N * np.diff(area)).pvalue < 1e-3


def test_distance_and_focal_are_within_their_ranges(samples):
  camera, azimuth, elevation = samples
  direction = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
  distance = np.sum(camera.position * direction, axis=1)
  assert 2.3 < distance.min() < 2.45 and 2.95 < distance.max() < 3.1
  assert np.abs(np.cross(camera.position, direction)).max() < 0.05 * np.sqrt(3)
  fov = np.rad2deg(2 * np.arctan(0.5 / camera.focal))
  assert 42 <= fov.min() < 42.2 and 49.8 < fov.max() <= 50 + 1e-3
  assert stats.kstest(fov, stats.uniform(42, 8).cdf).pvalue > 1e-3


def test_ball_of_radius_08_lies_in_every_frame(samples):
  camera = samples[0]
  centre = np.einsum("nij,ni->nj", camera.rotation, -camera.position)
  for axis in (0, 1):  # half-angle of the frame against direction and half-angle of the ball, in that axis's plane
    in_plane = np.hypot(centre[:, axis], centre[:, 2])
    outermost = np.abs(np.arctan2(centre[:, axis], -centre[:, 2])) + np.arcsin(0.8 / in_plane)
    assert (outermost < np.arctan(0.5 / camera.focal)).all()


def test_dreamfusion_constants():
  distribution = CameraDistribution.dreamfusion()
  keys = jax.random.split(jax.random.key(2), N)
  camera, _, _ = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: cameras.sample_camera(key, distribution)))(keys))
  assert 0.7 <= camera.focal.min() < 0.71 and 1.34 < camera.focal.max() <= 1.35
  distance = np.linalg.norm(camera.position, axis=1)
  assert 0.83 < distance.min() < 1.05 and 1.45 < distance.max() < 1.68


@pytest.fixture(scope="module")
def stratified():
  draw = jax.jit(jax.vmap(lambda key, indices: cameras.sample_cameras(key, indices, 2), in_axes=(0, None)))
  return lambda indices: jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(5), 2000), jnp.array(indices)))


def test_stratified_views_are_opposite_and_independent_of_order(stratified):
  camera, azimuth, elevation = stratified([0, 1])
  np.testing.assert_allclose(np.abs(azimuth[:, 0] - azimuth[:, 1]), np.pi, atol=1e-5)
  assert np.abs(elevation[:, 0] - elevation[:, 1]).mean() > 0.1
  swapped, _, _ = stratified([1, 0])  # as on another device, or in another order
  np.testing.assert_array_equal(swapped.position[:, ::-1], camera.position)
  np.testing.assert_array_equal(swapped.rotation[:, ::-1], camera.rotation)


def test_stratified_azimuth_is_uniform_over_steps(stratified):
  azimuth = stratified([0, 1])[1]
  for view in (0, 1):
    assert stats.chisquare(np.histogram(azimuth[:, view], bins=16, range=(0, 2 * np.pi))[0]).pvalue > 1e-3


def test_features_equal_the_documented_formula():
  azimuth, elevation, distance = 0.8, 0.35, 2.6
  c, s = math.cos(elevation), math.sin(elevation)
  expected = [c * math.cos(azimuth), c * math.sin(azimuth), s]
  for k in (1, 2, 3, 4):
    expected += [c**min(k, 2) * math.sin(k * azimuth), c**min(k, 2) * math.cos(k * azimuth)]
  expected += [math.sin(2 * elevation), math.cos(2 * elevation), distance - 2.7, 0.5 / math.tan(0.4) - 1.15, 1.0]
  features = cameras.camera_features(cameras.orbit(azimuth, elevation, distance, 0.8))
  assert features.shape == (cameras.CAMERA_DIM,)
  np.testing.assert_allclose(features, expected, atol=2e-6)


def test_features_are_continuous_at_the_pole_and_take_batches():
  poles = [cameras.camera_features(cameras.orbit(azimuth, math.pi / 2 - tilt, 2.7, 0.8))
           for azimuth in (0.0, 1.0, 4.0) for tilt in (0.0, 1e-3)]
  assert np.isfinite(poles).all()
  np.testing.assert_allclose(poles, np.tile(poles[0], (len(poles), 1)), atol=3e-3)
  camera = cameras.orbit(0.2, 0.3, 2.7, 0.8)
  batch = jax.tree.map(lambda x: jnp.stack([x, x]), camera)
  np.testing.assert_allclose(cameras.camera_features(batch)[1], cameras.camera_features(camera), atol=1e-6)


@pytest.mark.parametrize("azimuth, elevation", [(0.0, 0.0), (2.5, 0.7), (-1.2, 1.4), (4.0, -0.17)])
def test_ray_features_describe_the_camera_rays(azimuth, elevation):
  camera = cameras.orbit(azimuth, elevation, 2.6, 0.8)
  channels = cameras.ray_features(cameras.camera_features(camera), 5)
  assert channels.shape == (5, 5, cameras.RAY_DIM)
  cast = cameras.camera_rays(camera, 5, 5)
  for row, column in np.ndindex(5, 5):
    origin, direction = np.asarray(cast.origins[row, column]), np.asarray(cast.directions[row, column])
    # The nearest point by brute force along the ray.
    along = origin + np.linspace(0, 6, 60001)[:, None] * direction
    nearest = along[np.argmin((along**2).sum(-1))]
    waves = [f(k * np.pi * nearest) for k in (1, 2) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(channels[row, column], np.concatenate([nearest, direction, *waves]), atol=2e-3)


def test_rays_of_an_unknown_camera_are_zeros():
  channels = jax.vmap(lambda f: cameras.ray_features(f, 4))(jnp.zeros((2, cameras.CAMERA_DIM)))
  np.testing.assert_array_equal(channels, np.zeros((2, 4, 4, cameras.RAY_DIM)))


def test_distribution_is_a_frozen_value():
  with pytest.raises(dataclasses.FrozenInstanceError):
    CameraDistribution().distance = (1.0, 2.0)
  assert hash(CameraDistribution()) == hash(CameraDistribution())


@pytest.mark.parametrize("stratified", [True, False])
def test_groups_of_four_are_90_degrees_apart_and_share_all_else(stratified):
  distribution = CameraDistribution(distance=(0.8, 1.0), fov_y=(math.radians(15), math.radians(60)), relative=True,
                                    position_jitter=0.0, look_at_std=0.0, up_std=0.0)
  draw = lambda index: cameras.sample_groups(  # noqa: E731
    jax.random.key(1), index, 32, 4, stratified, distribution)
  camera, azimuth, elevation = jax.tree.map(np.asarray, jax.jit(draw)(jnp.arange(32)))
  turns = np.degrees(azimuth).reshape(8, 4)
  np.testing.assert_allclose(np.diff(turns, axis=1), 90.0, atol=1e-3)
  assert (0 <= turns[:, 0]).all() and (turns[:, 0] < 90).all()
  distance = np.linalg.norm(camera.position, axis=-1)
  for shared in (elevation, camera.focal, distance, camera.position[:, 2]):
    groups = shared.reshape(8, 4)
    np.testing.assert_allclose(groups, groups[:, :1].repeat(4, 1), rtol=1e-5)
    assert len(np.unique(np.round(groups[:, 0], 4))) == 8
  # Relative distances: the half-width of the frame at the object's centre is the drawn number.
  half = distance * 0.5 / camera.focal
  assert half.min() >= 0.8 - 1e-5 and half.max() <= 1.0 + 1e-5
  # The spread over the groups, and the same draws for a part of the views.
  if stratified:
    np.testing.assert_allclose(np.diff(np.sort(turns[:, 0])), 90 / 8, atol=1e-3)
  part = jax.tree.map(np.asarray, jax.jit(draw)(jnp.arange(8, 16)))
  np.testing.assert_allclose(part[0].position, camera.position[8:16], rtol=1e-5)
