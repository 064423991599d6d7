"""Scores of a mesh against exact surfaces: of equal, moved, turned, grown and shifted ones, in closed form."""
import math

import numpy as np
import pytest
import trimesh

from sds_jax.evaluation import surface_scores
from sds_jax.evaluation.surface_scores import surface_scores as score
from sds_jax.io import simplify
from sds_jax.shapeworld import captions, solids

SPHERE, CUBE, CONE = (captions.parse(f"a red {kind}") for kind in ("sphere", "cube", "cone"))


def ball(radius=solids.SPHERE_RADIUS, shift=0.0):
  solid = trimesh.creation.icosphere(subdivisions=5, radius=radius)
  return trimesh.Trimesh(solid.vertices + [0.0, 0.0, shift], solid.faces, process=False)


def test_the_exact_surface_of_a_sphere():
  exact = surface_scores.exact_mesh(SPHERE)
  assert exact.is_watertight
  np.testing.assert_allclose(np.linalg.norm(exact.vertices, axis=1), solids.SPHERE_RADIUS, atol=1e-5)
  assert exact.volume == pytest.approx(4 / 3 * math.pi * solids.SPHERE_RADIUS**3, rel=2e-3)


def test_exact_edges_are_sharp():
  exact = surface_scores.exact_mesh(CUBE)
  assert exact.volume == pytest.approx((2 * solids.CUBE_HALF) ** 3, rel=5e-3)
  np.testing.assert_allclose(exact.bounds, [[-solids.CUBE_HALF] * 3, [solids.CUBE_HALF] * 3], atol=1e-4)


def test_the_exact_surface_scores_perfectly():
  for spec in (CONE, captions.parse("a green cone on top of a blue cylinder")):
    scores = score(surface_scores.exact_mesh(spec), spec)
    assert scores["chamfer"] < 1e-4 and scores["normal_error_p90_deg"] < 0.5 and scores["normal_error_deg"] < 0.5
    assert scores["volume_error"] == 0.0 and abs(scores["below_base"]) < 1e-6


@pytest.mark.parametrize("growth", [-0.03, 0.05])
def test_a_sphere_of_another_radius(growth):
  """Every point is `growth` away; normals agree; the size is the diameter."""
  scores = score(ball(solids.SPHERE_RADIUS + growth), SPHERE)
  assert scores["chamfer"] == pytest.approx(abs(growth) / (2 * solids.SPHERE_RADIUS), rel=0.02)
  assert scores["normal_error_deg"] < 1.0 and scores["below_base"] == pytest.approx(growth, abs=1e-3)
  assert scores["volume_error"] == pytest.approx((1 + growth / solids.SPHERE_RADIUS) ** 3 - 1, abs=5e-3)


def test_a_shifted_sphere():
  """The distance to a sphere shifted by a little is |shift cos(angle)|, whose mean over the sphere is shift / 2."""
  scores = score(ball(shift=-0.02), SPHERE)
  assert scores["below_base"] == pytest.approx(0.02, abs=1e-3)
  assert scores["chamfer"] == pytest.approx(0.01 / (2 * solids.SPHERE_RADIUS), rel=0.05)
  # Normals of nearest points differ by asin(shift sin(angle) / radius): pi / 4 shift / radius in the mean.
  assert scores["normal_error_deg"] == pytest.approx(math.degrees(0.25 * math.pi * 0.02 / 0.6), rel=0.2)


def test_a_turned_cube_is_turned_back():
  exact = surface_scores.exact_mesh(CUBE)
  turn = trimesh.transformations.rotation_matrix(0.5, [0, 0, 1])
  turned = exact.copy().apply_transform(turn)
  assert score(turned, CUBE, 0.5)["chamfer"] < 1e-4
  assert score(turned, CUBE)["chamfer"] > 0.01


def test_an_inside_out_mesh_has_opposite_normals():
  solid = ball()
  assert score(trimesh.Trimesh(solid.vertices, solid.faces[:, ::-1], process=False), SPHERE)["normal_error_deg"] > 178


@pytest.mark.parametrize("solid", [trimesh.creation.icosphere(subdivisions=2, radius=0.5), trimesh.creation.box(),
                                   simplify.simplify(surface_scores.exact_mesh(CUBE), 400)])
def test_nearest_points_equal_a_loop_over_all_triangles(solid):
  """Also for large triangles beside small ones, which simplified meshes have."""
  rng = np.random.default_rng(0)
  points = np.concatenate([rng.normal(size=(20, 3)) * 0.5, surface_scores.draw(solid, 0)[0][:40] * 1.02])
  distance, normals = surface_scores.nearest(points, solid)
  for point, found, normal in zip(points, distance, normals):
    closest = trimesh.triangles.closest_point(solid.triangles, np.repeat(point[None], len(solid.faces), 0))
    away = np.linalg.norm(closest - point, axis=1)
    assert found == pytest.approx(away.min(), abs=1e-9)
    assert np.linalg.norm(normal) == pytest.approx(1.0)
