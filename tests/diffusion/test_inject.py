"""`inject`: a scalar with a given cotangent as its gradient."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import inject

X, G = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(2, 3, 4)))


def test_gradient_is_the_cotangent_and_value_is_zero():
  value, (dx, dg) = jax.value_and_grad(inject, argnums=(0, 1))(X, G)
  assert value == 0 and value.shape == () and value.dtype == jnp.float32
  np.testing.assert_array_equal(dx, G)
  np.testing.assert_array_equal(dg, np.zeros_like(G))


def test_sums_with_ordinary_losses_and_follows_the_chain_rule():
  loss = lambda theta: 3.0 * inject(jnp.sin(theta), G) + 0.5 * jnp.sum(theta**2)  # noqa: E731
  expected = 3 * np.asarray(G) * np.cos(X) + np.asarray(X)
  np.testing.assert_allclose(jax.jit(jax.grad(loss))(X), expected, rtol=1e-5, atol=1e-6)


def test_a_cotangent_made_of_x_is_not_differentiated():
  np.testing.assert_allclose(jax.grad(lambda x: inject(x, x**3))(X), X**3, rtol=1e-6)


def test_bfloat16_and_tiny_cotangents():
  """Checks a cotangent lost by 0.5 |x - stop(x - g)|^2, because x - g rounds to x."""
  x = jnp.full((4,), 5.0, jnp.bfloat16)
  gradient = jax.grad(lambda x: inject(x, jnp.full((4,), 1e-3, jnp.float32)))(x)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(gradient, jnp.full((4,), 1e-3, jnp.bfloat16))


def test_vmap_scan_and_checkpoint():
  one_by_one = np.stack([jax.grad(inject)(x, g) for x, g in zip(X, G)])
  np.testing.assert_array_equal(jax.vmap(jax.grad(inject))(X, G), one_by_one)
  np.testing.assert_array_equal(jax.grad(lambda x: jax.vmap(inject)(x, G).sum())(X), one_by_one)
  scanned = lambda x: jax.lax.scan(lambda total, pair: (total + inject(*pair), None), 0.0, (x, G))[0]  # noqa: E731
  np.testing.assert_array_equal(jax.grad(scanned)(X), one_by_one)
  np.testing.assert_array_equal(jax.grad(jax.checkpoint(lambda x: inject(x, G)))(X), one_by_one)


def test_gradient_through_a_vmap_with_a_shared_argument():
  """Checks a scalar batched with either argument; otherwise its cotangents would be summed over the batch first."""
  shared_x = jax.grad(lambda x: jax.vmap(lambda g: inject(x, g))(G).sum())(X[0])
  np.testing.assert_allclose(shared_x, np.asarray(G).sum(0), rtol=1e-6)
  shared_g = jax.grad(lambda x: jax.vmap(lambda x: inject(x, G[0]))(x).sum())(X)
  np.testing.assert_array_equal(shared_g, np.broadcast_to(G[0], X.shape))


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"\(4,\), but x has \(3, 4\)"):
    inject(X, G[0])
