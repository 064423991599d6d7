"""The solids against closed-form volumes, a second definition, and the conditions of sphere tracing."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.shapeworld import solids

PI = np.pi
VOLUMES = {
  "sphere": 4 / 3 * PI * 0.6**3,
  "cube": 0.8**3,
  "cylinder": PI * 0.42**2 * 1.0,
  "cone": PI * 0.5**2 * 1.1 / 3,
  "torus": 2 * PI**2 * 0.43 * 0.19**2,
  "pyramid": 0.9**2 * 0.98 / 3,
  "capsule": PI * 0.3**2 * 0.7 + 4 / 3 * PI * 0.3**3,
}


def _points(n, radius=1.0, seed=0):
  return np.random.default_rng(seed).uniform(-radius, radius, (n, 3)).astype(np.float32)


def _distance(kind, points):
  return np.asarray(jax.jit(solids.DISTANCES[kind])(*jnp.asarray(points).T))


@pytest.mark.parametrize("kind", solids.PLAIN)
def test_volume_is_the_closed_form(kind):
  n, box = 400_000, 1.5**3
  share = np.mean(_distance(kind, _points(n, 0.75)) < 0)
  expected = VOLUMES[kind] / box
  assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("kind", solids.KINDS)
def test_sign_agrees_with_a_second_definition(kind, inside):
  points = _points(100_000, 0.8, seed=1)
  distance = _distance(kind, points)
  clear = np.abs(distance) > 1e-5
  np.testing.assert_array_equal((distance < 0)[clear], inside[kind](*points.T.astype(np.float64))[clear])


@pytest.mark.parametrize("kind", solids.KINDS)
def test_distance_is_lipschitz_with_slope_1(kind):
  points = _points(30_000, 1.2, seed=2)
  step = np.random.default_rng(3).normal(size=points.shape).astype(np.float32)
  step *= np.random.default_rng(4).uniform(1e-2, 0.5, (len(points), 1)).astype(np.float32)
  change = np.abs(_distance(kind, points + step) - _distance(kind, points))
  assert np.all(change <= np.linalg.norm(step, axis=1) + 1e-5)
  gradient = jax.vmap(jax.grad(lambda p: solids.DISTANCES[kind](*(p[i:i + 1] for i in range(3)))[0]))(points)
  slope = np.linalg.norm(np.asarray(gradient), axis=1)
  np.testing.assert_allclose(slope[np.isfinite(slope)], 1.0, atol=1e-3)
  assert np.mean(np.isfinite(slope)) > 0.7  # the automatic derivative is undefined nearest to a corner


@pytest.mark.parametrize("kind", solids.KINDS)
def test_solid_lies_within_its_ball_and_fills_it(kind):
  points = _points(400_000, 0.9, seed=5)
  radius = np.linalg.norm(points[_distance(kind, points) < 0], axis=1).max()
  assert 0.55 < radius <= 0.75


@pytest.mark.parametrize("kind, point, expected", [
  ("sphere", (1.0, 0.0, 0.0), 0.4),
  ("cube", (1.0, 0.0, 0.0), 0.6),
  ("cube", (0.7, 0.8, 0.4), 0.5),
  ("cube", (0.0, 0.1, 0.0), -0.3),
  ("cylinder", (0.72, 0.0, 0.9), 0.5),
  ("cone", (0.0, 0.0, -0.8), 0.3),
  ("torus", (0.0, 0.0, 0.0), 0.24),
  ("pyramid", (0.0, 0.0, -0.5), 0.12),
  ("capsule", (0.0, 0.0, 1.0), 0.35),
])
def test_distances_by_hand(kind, point, expected):
  np.testing.assert_allclose(_distance(kind, np.array([point], np.float32)), [expected], atol=1e-6)


def _painted(kind, *point):
  weight, colour = solids.PAINTS[kind](*jnp.array([point]).T)
  return float(weight[0]), np.asarray(colour[0])


def test_fronts_face_plus_x():
  door, colour = _painted("house", 0.4, 0.0, -0.3)
  assert door == 1.0 and colour.max() < 0.2
  assert _painted("house", -0.4, 0.0, -0.3)[0] == 0.0
  assert _painted("snowman", 0.199, 0.085, 0.53)[0] == 1.0 and _painted("snowman", -0.199, 0.085, 0.53)[0] == 0.0
  nose, back_of_the_head = _distance("snowman", np.array([[0.34, 0, 0.43], [-0.34, 0, 0.43]], np.float32))
  assert nose < 0 < back_of_the_head
  backrest, open_side = _distance("chair", np.array([[-0.27, 0, 0.4], [0.27, 0, 0.4]], np.float32))
  assert backrest < 0 < open_side


def test_mug_is_hollow_with_its_handle_on_plus_y():
  cavity, floor, handle, other_side = _distance(
    "mug", np.array([[0, -0.1, 0], [0, -0.1, -0.4], [0, 0.52, 0], [0, -0.52, 0]], np.float32))
  assert cavity > 0.2 and floor < 0 and handle < 0 < other_side
  assert _painted("mug", 0.0, -0.1, -0.35)[0] > 0.2 and _painted("mug", 0.38, -0.1, 0.0)[0] == 0.0


def test_colours_are_well_separated():
  colours = np.array(list(solids.COLOURS.values()))
  gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(len(colours))
  assert len(colours) == 8 and gaps.min() > 0.35
