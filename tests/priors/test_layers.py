"""Layers against closed forms and slow loops in numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.networks import layers
from sds_jax.priors.networks.dot_product import dot_product_attention


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoidal_embedding(flip, shift):
  t, dim = [0, 3, 999], 9
  expected = np.zeros((3, dim))
  for row, time in enumerate(t):
    for i in range(4):
      angle = time * 10000 ** (-i / (4 - shift))
      pair = (np.cos(angle), np.sin(angle)) if flip else (np.sin(angle), np.cos(angle))
      expected[row, i], expected[row, 4 + i] = pair
  got = layers.sinusoidal_embedding(jnp.asarray(t), dim, flip, shift)
  np.testing.assert_allclose(got, expected, atol=2e-4)
  assert got.dtype == jnp.float32


def test_group_norm():
  x, scale, bias = 3 + draw(2, 3, 5, 6), draw(6, seed=1), draw(6, seed=2)
  expected = np.empty_like(x)
  for b in range(2):
    for g in range(3):
      part = x[b, :, :, 2 * g:2 * g + 2].astype(np.float64)
      expected[b, :, :, 2 * g:2 * g + 2] = (part - part.mean()) / np.sqrt(part.var() + 1e-3)
  norm = layers.GroupNorm(3, 1e-3)
  got = norm.apply({"params": dict(scale=jnp.asarray(scale), bias=jnp.asarray(bias))}, jnp.asarray(x))
  np.testing.assert_allclose(got, expected * scale + bias, atol=1e-5)


def test_group_norm_far_from_zero():
  # The mean of squares minus the square of the mean would lose all digits here.
  x = 1e4 + draw(1, 8, 8, 4).astype(np.float64)
  expected = (x - x.mean()) / x.std()
  params = dict(scale=jnp.ones(4), bias=jnp.zeros(4))
  got = layers.GroupNorm(1, 0.).apply({"params": params}, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, expected, atol=6e-3)


def test_layer_norm():
  x, scale, bias = 3 + draw(2, 3, 7), draw(7, seed=1), draw(7, seed=2)
  expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
  got = layers.LayerNorm().apply({"params": dict(scale=jnp.asarray(scale), bias=jnp.asarray(bias))}, jnp.asarray(x))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_group_norm_refuses_groups():
  with pytest.raises(ValueError, match="6 channels are not divisible by 4 groups"):
    layers.GroupNorm(4, 1e-5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_against_a_loop(causal, dtype):
  q, k, v = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1), draw(2, 5, 3, 6, seed=2)
  q, k, v = (np.asarray(jnp.asarray(a, dtype), np.float32) for a in (q, k, v))
  expected = np.zeros((2, 5, 3, 6))
  for b, i, h in np.ndindex(2, 5, 3):
    visible = i + 1 if causal else 5
    weights = np.exp([q[b, i, h] @ k[b, j, h] / 2 for j in range(visible)])
    expected[b, i, h] = (weights / weights.sum()) @ v[b, :visible, h]
  got = dot_product_attention(*(jnp.asarray(a, dtype) for a in (q, k, v)), is_causal=causal)
  assert got.dtype == dtype
  np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=1e-5 if dtype == jnp.float32 else 3e-2)


def test_attention_scores_are_float32():
  # Scores 96 and 96.25: in bfloat16 (steps of 0.5 there) they would be equal and each weigh one half.
  q, k = (jnp.asarray(a, jnp.bfloat16).reshape(1, -1, 1, 4) for a in ([64, 1, 0, 0], [3, 0, 0, 0, 3, 0.5, 0, 0]))
  got = dot_product_attention(q, k, jnp.asarray([0, 1], jnp.bfloat16).reshape(1, 2, 1, 1))
  np.testing.assert_allclose(float(got[0, 0, 0, 0]), 1 / (1 + np.exp(-0.25)), atol=4e-3)


def test_attention_implementation_is_checked():
  x = jnp.zeros((1, 1, 1, 1))
  with pytest.raises(ValueError, match="'flash' is unknown; there is auto, xla, chunked, cudnn"):
    dot_product_attention(x, x, x, implementation="flash")


def test_upsample_repeats_pixels():
  x = draw(1, 2, 3, 1)
  kernel = np.zeros((3, 3, 1, 1), np.float32)
  kernel[1, 1] = 1
  params = dict(conv=dict(kernel=jnp.asarray(kernel), bias=jnp.zeros(1)))
  got = layers.Upsample2D(1).apply({"params": params}, jnp.asarray(x))
  np.testing.assert_array_equal(got, x.repeat(2, axis=1).repeat(2, axis=2))
