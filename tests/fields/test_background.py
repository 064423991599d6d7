"""Backgrounds."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields.background import BACKGROUNDS, make_background, plain_colour

DIRECTIONS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


@pytest.mark.parametrize("name", sorted(BACKGROUNDS))
def test_every_background_gives_a_colour_for_each_ray(name):
  background = make_background(name)
  colours = background.apply(background.init(jax.random.key(0)), jax.random.key(1), jnp.asarray(DIRECTIONS))
  assert colours.shape == (9, 3) and colours.min() >= 0 and colours.max() <= 1
  assert (np.ptp(np.asarray(colours), axis=0).max() > 1e-3) == (name == "mlp")
  if name == "white":
    assert (colours == 1).all()


def test_plain_is_grey_with_a_tint_and_the_views_own():
  colours = np.asarray(jax.vmap(plain_colour)(jax.random.split(jax.random.key(0), 4000)))
  assert colours.min() >= 0.35 - 0.08 and colours.max() <= 1.0
  assert np.ptp(colours, axis=1).max() <= 0.16 and np.ptp(colours, axis=1).mean() > 0.05
  np.testing.assert_allclose(colours.mean(), 0.675, atol=0.02)


def test_unknown_background_is_an_error():
  with pytest.raises(ValueError, match="unknown background 'black'; known: mlp, plain, white"):
    make_background("black")
