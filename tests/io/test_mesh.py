import math
import tracemalloc

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sds_jax.io import mesh

WHITE = np.ones_like


def sphere(centre, radius, density=1000.0, width=0.02):
  """A density that rises over `width` at the sphere, half of `density` on it."""
  def fn(points):
    distance = np.linalg.norm(points - np.asarray(centre, np.float32), axis=1) - radius
    return density / (1.0 + np.exp(np.clip(distance / (0.25 * width), -60, 60)))
  return fn


def torus(points, major=0.45, minor=0.18):
  distance = np.hypot(np.hypot(points[:, 0], points[:, 1]) - major, points[:, 2]) - minor
  return 50.0 * (1.0 - distance / 0.05).clip(0.0)


def outward(solid):
  """Closed, and wound so that the faces look out (the signed volume of an inside-out mesh is negative)."""
  return solid.is_watertight and solid.is_winding_consistent and solid.volume > 0


def test_sphere_is_where_it_should_be():
  solid = mesh.extract_mesh(sphere([0.1, -0.2, 0.15], 0.4), WHITE, resolution=64, threshold=500.0)
  assert outward(solid) and solid.euler_number == 2
  assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.4 ** 3, rel=0.02)
  np.testing.assert_allclose(solid.center_mass, [0.1, -0.2, 0.15], atol=2e-3)
  out = solid.triangles_center - [0.1, -0.2, 0.15]
  assert np.all(np.einsum("ij,ij->i", out, solid.face_normals) > 0)


def test_a_density_that_jumps_does_not_swell_the_object():
  """Linear interpolation between 0 and 5000 at a level of 10 would put the surface on the outer grid points (+8 %)."""
  solid = mesh.extract_mesh(lambda p: 5000.0 * (np.linalg.norm(p, axis=1) < 0.5), WHITE, resolution=64, threshold=10.0)
  assert outward(solid) and solid.volume == pytest.approx(4 / 3 * math.pi * 0.5 ** 3, rel=0.03)


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)])
def test_noise_is_watertight(values):
  """Every ambiguous cell occurs; with the second set of values, many grid points lie exactly on the level."""
  rng = np.random.default_rng(0)
  density = rng.choice(-np.log2(np.maximum(1.0 - np.array(values), 1e-9)), 12 ** 3).astype(np.float32)
  seen = iter(density)
  solid = mesh.extract_mesh(lambda p: np.fromiter(seen, np.float32, len(p)), WHITE, 12, threshold=1.0, min_part=-10.0,
                            chunk=144)
  assert outward(solid) and len(solid.faces) > 3000


def test_vertices_are_the_crossings_of_the_grid_edges():
  """Marching cubes has one vertex on each edge of the grid whose ends lie on two sides of the level."""
  density = sphere([0.1, -0.2, 0.15], 0.4, width=0.2)
  solid = mesh.extract_mesh(density, WHITE, resolution=24, threshold=500.0)
  grid = mesh.grid_density(density, 24, 0.8).astype(np.float64)
  opacity, voxel, crossings = 1.0 - np.exp2(-grid / 500.0), 1.6 / 23, []
  for axis in range(3):
    before, after = np.take(opacity, range(23), axis), np.take(opacity, range(1, 24), axis)
    where = np.argwhere((before < 0.5) != (after < 0.5))
    low, high = (values[tuple(where.T)] for values in (before, after))
    where = where.astype(float)
    where[:, axis] += (0.5 - low) / (high - low)
    crossings.append(where * voxel - 0.8)
  crossings = np.concatenate(crossings)
  distance, nearest = cKDTree(solid.vertices).query(crossings)
  assert len(crossings) == len(solid.vertices) == len(set(nearest)) and distance.max() < 1e-4 * voxel


def test_memory_of_the_grids():
  """Eight bytes a grid point while the surface is small; a tenth is left for slabs, chunks and the shell."""
  density = sphere([0, 0, 0], 0.1)
  mesh.extract_mesh(density, WHITE, resolution=32)
  tracemalloc.start()
  try:
    mesh.extract_mesh(density, WHITE, resolution=128, threshold=500.0, chunk=1024)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 1.1 * 8 * 128 ** 3


def test_torus_keeps_its_hole_and_its_axis():
  solid = mesh.extract_mesh(torus, WHITE, resolution=64, threshold=50.0)
  assert outward(solid) and solid.euler_number == 0
  assert solid.volume == pytest.approx(2 * math.pi ** 2 * 0.45 * 0.18 ** 2, rel=0.03)
  np.testing.assert_allclose(solid.extents, [1.26, 1.26, 0.36], atol=0.02)


def test_an_object_that_leaves_the_cube_is_closed_at_the_bound():
  solid = mesh.extract_mesh(sphere([0, 0, 0.8], 0.4), WHITE, resolution=48, threshold=500.0)
  assert outward(solid) and solid.volume == pytest.approx(2 / 3 * math.pi * 0.4 ** 3, rel=0.06)
  assert solid.bounds[1, 2] == pytest.approx(0.8, abs=1.6 / 47)


def test_colours_are_those_under_the_surface():
  def colour(points):  # red in front (+x), green behind; black just outside the sphere, as a field may be there
    inside = np.linalg.norm(points, axis=1) < 0.5
    return np.where((points[:, :1] > 0), [0.9, 0.1, 0.2], [0.1, 0.8, 1.7]) * inside[:, None]
  solid = mesh.extract_mesh(sphere([0, 0, 0], 0.5), colour, resolution=48, threshold=500.0)
  rgba, x = np.asarray(solid.visual.vertex_colors), solid.vertices[:, 0]
  assert rgba.shape == (len(x), 4) and rgba.dtype == np.uint8
  assert (rgba[x > 0.03] == [230, 26, 51, 255]).all() and (rgba[x < -0.03] == [26, 204, 255, 255]).all()


def test_every_call_has_one_shape_and_covers_the_grid():
  shapes, seen = set(), []

  def density(points):
    shapes.add((points.shape, points.dtype))
    seen.append(points)
    return sphere([0, 0, 0], 0.5)(points)

  def colour(points):
    shapes.add((points.shape, points.dtype))
    return np.ones_like(points)
  mesh.extract_mesh(density, colour, resolution=20, chunk=3000)
  assert shapes == {((3000, 3), np.dtype(np.float32))}
  points = np.concatenate(seen)[:8000]
  assert len(np.unique(points.round(4), axis=0)) == 8000 and np.abs(points).max() == np.float32(0.8)


def test_floaters_and_cavities_go_and_big_parts_stay():
  def density(points):
    hollow = sphere([-0.3, 0, 0], 0.4)(points) - sphere([-0.3, 0, 0], 0.2)(points)
    second = sphere([0.45, 0, 0], 0.2)(points)  # an eighth of the volume
    crumb = sphere([0.3, 0.6, 0.6], 0.08)(points)  # less than a hundredth
    return np.maximum(np.maximum(hollow, second), crumb)
  solid = mesh.extract_mesh(density, WHITE, resolution=80, threshold=500.0)
  assert outward(solid) and solid.euler_number == 4  # two closed surfaces
  assert solid.volume == pytest.approx(4 / 3 * math.pi * (0.4 ** 3 + 0.2 ** 3), rel=0.03)
  everything = mesh.extract_mesh(density, WHITE, resolution=80, threshold=500.0, min_part=0.0)
  assert everything.euler_number == 6 and everything.bounds[1, 2] > 0.65


def test_auto_threshold_is_half_opacity_over_a_quarter_of_the_bound():
  level = mesh.auto_threshold(np.array([0.0, 1e4]), bound=0.8)
  assert 1.0 - math.exp(-level * 0.8 / 4) == pytest.approx(0.5)
  density = sphere([0, 0, 0], 0.5, 2 * level, width=0.1)
  solid = {n: mesh.extract_mesh(density, WHITE, resolution=n).volume for n in (40, 80)}
  assert solid[40] == pytest.approx(4 / 3 * math.pi * 0.5 ** 3, rel=0.03)
  assert solid[40] == pytest.approx(solid[80], rel=0.015)


def test_auto_threshold_finds_a_soft_object():
  solid = mesh.extract_mesh(sphere([0, 0, 0], 0.5, density=5.0), WHITE, resolution=48)
  assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.5 ** 3, rel=0.03)


@pytest.mark.parametrize("density, threshold, message", [
  (0.0, "auto", "field is empty.*train longer"), (0.3, "auto", "field is empty"),
  (5.0, 10.0, "nothing.*try threshold=2.5"),
  (20.0, 10.0, "no surface; raise the threshold"), (20.0, "auto", "no surface"), (math.nan, "auto", "NaN or infinite"),
  (5.0, -1.0, "threshold must be"),
])
def test_fields_without_a_surface(density, threshold, message):
  with pytest.raises(ValueError, match=message):
    mesh.extract_mesh(lambda p: np.full(len(p), density, np.float32), WHITE, 8, threshold=threshold, chunk=512)
