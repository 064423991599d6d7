"""Scenes: objects of a caption have the right place, touch each other, and stay inside the frame."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.shapeworld import captions, scenes, solids

PAIRS = list(itertools.product(solids.PLAIN, solids.PLAIN))
slot_distance = jax.jit(lambda scene, x, y, z: jnp.stack([
  scenes.distance(jax.tree.map(lambda leaf: jnp.stack([leaf[i], leaf[i]]), scene), x, y, z) for i in range(2)]))
POINTS = np.random.default_rng(0).uniform(-0.8, 0.8, (4096, 3)).astype(np.float32)
compiled_sdf = jax.jit(scenes.sdf)


def sdf(scene, points):
  """Calls `scenes.sdf`, compiled once for all tests by padding the points to a fixed number."""
  distance, albedo = compiled_sdf(scene, np.concatenate([np.asarray(points, np.float32), POINTS])[:4096])
  return np.asarray(distance)[:len(points)], np.asarray(albedo)[:len(points)]


@pytest.fixture(scope="module")
def slices():
  """Returns x, y, z [2 N] of the half-planes y = 0 and y = x, the places of first contact of stacked solids."""
  radius, height = np.meshgrid(np.arange(0, 0.64, 0.005), np.arange(-0.75, 0.75, 0.005))
  radius, height = radius.ravel(), height.ravel()
  x = np.concatenate([radius, radius])
  return [axis.astype(np.float32) for axis in (x, np.concatenate([0 * radius, radius]), np.tile(height, 2))]


@pytest.mark.parametrize("top, bottom", PAIRS)
def test_stacked_solids_touch_and_are_in_the_frame(top, bottom, slices):
  scene = scenes.scene_from_spec(captions.Spec((("red", top), ("blue", bottom))))
  above, below = np.asarray(slot_distance(scene, *slices))
  assert np.any((above < 0) & (below < 0))
  raised = scene.replace(offset=scene.offset + np.array([[0, 0, scenes.SUNK + 0.005], [0, 0, 0]], np.float32))
  above_raised, below_raised = np.asarray(slot_distance(raised, *slices))
  assert not np.any((above_raised < 0) & (below_raised < 0))
  either = (above < 0) | (below < 0)
  assert np.linalg.norm(np.stack(slices)[:, either], axis=0).max() <= scenes.SCENE_RADIUS
  heights = slices[2][either]
  assert abs(heights.max() + heights.min()) < 0.02  # centred
  assert slices[2][above < 0].mean() > slices[2][below < 0].mean()


def test_ball_rests_on_the_apex_of_a_cone():
  scale, ball, cone = scenes.stacking("sphere", "cone")
  np.testing.assert_allclose(ball - 0.6 * scale, cone + 0.6 * scale - scenes.SUNK, atol=1e-6)


def test_ring_slips_over_a_cone_to_first_contact():
  scale, ring, cone = scenes.stacking("torus", "cone")
  normal = np.array([1.1, 0.5]) / np.hypot(1.1, 0.5)  # of the cone's side, in (radius, height)
  gap = normal @ np.array([0.43, (ring + scenes.SUNK - cone) / scale - 0.6]) - 0.19
  assert abs(gap) < 5e-3


def test_first_colour_of_a_caption_is_on_top():
  scene = scenes.scene_from_caption("a green cube on top of a red sphere")
  scale, top, bottom = scenes.stacking("cube", "sphere")
  _, albedo = sdf(scene, np.array([[0, 0, top], [0, 0, bottom]], np.float32))
  np.testing.assert_allclose(albedo, [solids.COLOURS["green"], solids.COLOURS["red"]], atol=1e-6)


def test_single_object_is_canonical(inside):
  for kind in ("chair", "torus"):
    distance, albedo = sdf(scenes.scene_from_caption(f"a pink {kind}"), POINTS)
    clear = np.abs(distance) > 1e-5
    np.testing.assert_array_equal((distance < 0)[clear], inside[kind](*POINTS.T.astype(float))[clear])
    np.testing.assert_allclose(albedo, np.broadcast_to(solids.COLOURS["pink"], (len(POINTS), 3)), atol=1e-6)


def test_scenes_stack_and_vmap():
  texts = ["a red cube", "a blue cone on top of a pink torus", "a green snowman"]
  single = [scenes.scene_from_caption(text) for text in texts]
  batched = jax.jit(jax.vmap(scenes.sdf, in_axes=(0, None)))(scenes.stack_scenes(single), POINTS)
  for i, scene in enumerate(single):
    distance, albedo = sdf(scene, POINTS)
    np.testing.assert_allclose(batched[0][i], distance, atol=1e-6)
    np.testing.assert_allclose(batched[1][i], albedo, atol=1e-6)


def test_rotate_points_z_turns_counter_clockwise():
  turned = scenes.rotate_points_z(jnp.array([[1.0, 0.0, 0.3], [0.0, 1.0, -0.2]]), np.pi / 2)
  np.testing.assert_allclose(turned, [[0, 1, 0.3], [-1, 0, -0.2]], atol=1e-6)
