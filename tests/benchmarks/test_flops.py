"""The counter against closed forms."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from sds_jax.benchmarks import flops
from sds_jax.fields.field import make_field


def zeros(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_dense_and_its_gradient():
  dot = 2 * 7 * 5 * 3
  assert flops.count(jnp.dot, zeros(7, 5), zeros(5, 3)) == dot
  both = jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1))
  assert flops.count(both, zeros(7, 5), zeros(5, 3)) == 3 * dot


def test_batched_product():
  assert flops.count(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), zeros(2, 3, 4, 5), zeros(2, 3, 6, 5)) == (
    2 * 2 * 3 * 4 * 6 * 5)


@pytest.mark.parametrize("stride, groups, size", [(1, 1, 8), (2, 1, 4), (1, 3, 8)])
def test_convolution(stride, groups, size):
  layer = nn.Conv(12, (3, 5), strides=stride, feature_group_count=groups, use_bias=False)
  params = jax.eval_shape(layer.init, jax.random.key(0), zeros(2, 8, 8, 6))
  assert flops.count(layer.apply, params, zeros(2, 8, 8, 6)) == 2 * (2 * size * size * 12) * (3 * 5 * 6 // groups)


def test_loops():
  a = zeros(4, 4)
  once = 2 * 4**3
  assert flops.count(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=9)[0], a) == 9 * once
  assert flops.count(lambda a: jax.lax.map(lambda row: row @ a, a), a) == once
  nested = lambda a: jax.lax.fori_loop(  # noqa: E731
    0, 3, lambda i, c: jax.lax.scan(lambda d, _: (d @ a, None), c, None, length=5)[0], a)
  assert flops.count(nested, a) == 15 * once


def test_while_loops():
  a, bound = zeros(4, 4), jax.ShapeDtypeStruct((), jnp.int32)
  loop = lambda a, bound: jax.lax.fori_loop(0, bound, lambda i, c: c @ a, a)  # noqa: E731
  with pytest.raises(ValueError, match="give `trips`"):
    flops.count(loop, a, bound)
  assert flops.count(loop, a, bound, trips=6) == 6 * 2 * 4**3
  assert flops.count(lambda a, bound: jax.lax.fori_loop(0, bound, lambda i, c: c + a, a), a, bound) == 0


def test_branches():
  a = zeros(4, 4)
  once = 2 * 4**3
  skipped = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a)  # noqa: E731
  either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a @ a @ a)  # noqa: E731
  assert flops.count(skipped, a) == once and flops.count(either, a) == 2 * once
  assert flops.count(skipped, a, branch=flops.filled(0.25)) == 0.25 * once
  assert flops.count(either, a, branch=flops.filled(0.25)) == 2 * once


def test_recomputation_counts_again():
  a = zeros(4, 4)
  chain = lambda a: jnp.sum(jnp.sin(jnp.sin(a @ a) @ a))  # noqa: E731
  plain = flops.count(jax.grad(chain), a)
  assert plain == 6 * 2 * 4**3
  assert flops.count(jax.grad(jax.checkpoint(chain)), a) == plain + 2 * 2 * 4**3


def test_default_field():
  field = make_field("mlp", hidden=32, depth=2, num_octaves=4)
  params = jax.eval_shape(field.init, jax.random.key(0))
  assert flops.count(field.apply, params, zeros(100, 3)) == 2 * 100 * (3 * 24 + 27 * 32 + 32 * 32 + 32 * 4)
