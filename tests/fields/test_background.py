"""Backgrounds: ranges, distributions, and the learnt networks against numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields.background import BACKGROUNDS, LEARNT, make_background, plain_colour
from sds_jax.fields.encodings import spherical_harmonics

DIRECTIONS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


@pytest.mark.parametrize("name", sorted(BACKGROUNDS))
def test_every_background_gives_a_colour_for_each_ray(name):
  background = make_background(name)
  colours = jax.jit(lambda key, directions: background.apply(background.init(key), jax.random.key(1), directions))(
    jax.random.key(0), DIRECTIONS)
  assert colours.shape == (9, 3) and colours.min() >= 0 and colours.max() <= 1
  assert (np.ptp(np.asarray(colours), axis=0).max() > 1e-3) == (name in LEARNT)
  if name == "white":
    assert (colours == 1).all()


def test_plain_colours_are_grey_with_a_tint():
  colours = np.asarray(jax.jit(jax.vmap(plain_colour))(jax.random.split(jax.random.key(0), 4000)))
  assert colours.min() >= 0.35 - 0.08 and colours.max() <= 1.0
  assert np.ptp(colours, axis=1).max() <= 0.16 and np.ptp(colours, axis=1).mean() > 0.05
  np.testing.assert_allclose(colours.mean(), 0.675, atol=0.02)


def test_unknown_background_is_an_error():
  with pytest.raises(ValueError, match="unknown background 'black'; known: harmonics, mlp, plain, white"):
    make_background("black")


@pytest.mark.parametrize("degree, depth", [(3, 2), (4, 1)], ids=["threestudio", "dreamfusionacc"])
def test_harmonics_are_an_mlp_of_the_harmonics_of_the_direction(degree, depth):
  background = make_background("harmonics", degree=degree, hidden=16, depth=depth)
  params = jax.tree.map(np.asarray, jax.jit(background.init)(jax.random.key(2)))
  assert [params[f"Dense_{i}"]["kernel"].shape for i in range(depth + 1)] == [
    *[(degree**2, 16), (16, 16)][:depth], (16, 3)]
  x = np.asarray(jax.jit(spherical_harmonics, static_argnums=1)(DIRECTIONS, degree))  # tested in test_encodings
  for i in range(depth):
    x = np.maximum(x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"], 0)
  x = x @ params[f"Dense_{depth}"]["kernel"] + params[f"Dense_{depth}"]["bias"]
  colours = jax.jit(background.apply)(params, jax.random.key(0), DIRECTIONS)
  np.testing.assert_allclose(colours, 1 / (1 + np.exp(-x)), atol=1e-5)


def test_random_colour_replaces_the_given_share_of_views():
  background = make_background("mlp", random_colour=0.3)
  params = jax.jit(background.init)(jax.random.key(0))
  directions = jnp.asarray(DIRECTIONS)
  learnt = np.asarray(jax.jit(make_background("mlp").apply)(params, jax.random.key(9), directions))
  draw = jax.jit(jax.vmap(lambda key: background.apply(params, key, directions)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(1), 2000)))
  flat = np.ptp(drawn, axis=1).max(axis=1) == 0
  assert flat.mean() == pytest.approx(0.3, abs=0.04)
  np.testing.assert_allclose(drawn[~flat], np.broadcast_to(learnt, drawn[~flat].shape), atol=1e-6)
  colours = drawn[flat][:, 0]
  assert colours.min() < 0.02 and colours.max() > 0.98  # uniform in [0, 1]^3 with independent channels
  np.testing.assert_allclose(colours.mean(0), 0.5, atol=0.05)
  assert abs(np.corrcoef(colours.T) - np.eye(3)).max() < 0.15
