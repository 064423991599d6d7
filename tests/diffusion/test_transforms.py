"""score_distillation under every JAX transformation: equal numbers, and no network in the backward pass."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.guidance import guided

BATCH = 16


@pytest.fixture(scope="module")
def problem(schedule, network):
  """Returns loss_fn(theta, inputs, prior params, key) -> (loss, aux), theta, inputs [B, ...], prior params."""
  denoise, prior = network
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  theta = dict(a=array(4, 6), b=array(6))
  inputs = dict(index=jnp.arange(BATCH), view=array(BATCH, 4), cond=dict(cond=array(BATCH, 3), uncond=array(BATCH, 3)))

  def loss_fn(theta, inputs, prior, key):
    image = jax.nn.sigmoid(inputs["view"] @ theta["a"] + theta["b"][None])
    loss, aux = score_distillation(guided(denoise, "dreamfusion", 3.0), prior, schedule, image, key, inputs["cond"],
                                   index=inputs["index"])
    return loss + 1e-2 * jnp.mean(image**2), aux

  return loss_fn, theta, inputs, prior


@pytest.fixture(scope="module")
def plain(problem):
  """Computes the gradient op by op, without other transformations."""
  loss_fn, theta, inputs, prior = problem
  return jax.grad(loss_fn, has_aux=True)(theta, inputs, prior, jax.random.key(0))


def assert_same(actual, expected):
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


def test_jit(problem, plain):
  loss_fn, theta, inputs, prior = problem
  actual, aux = jax.jit(jax.grad(loss_fn, has_aux=True))(theta, inputs, prior, jax.random.key(0))
  assert_same(actual, plain[0])
  np.testing.assert_array_equal(aux.t, plain[1].t)
  np.testing.assert_array_equal(aux.eps, plain[1].eps)


def test_vmap_over_particles(problem):
  loss_fn, theta, inputs, prior = problem
  thetas = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), theta)
  keys = jax.random.split(jax.random.key(4), 3)
  grad_fn = jax.jit(lambda theta, key: jax.grad(loss_fn, has_aux=True)(theta, inputs, prior, key)[0])
  actual = jax.vmap(grad_fn)(thetas, keys)
  for i in range(3):
    expected = grad_fn(jax.tree.map(lambda leaf: leaf[i], thetas), keys[i])
    assert_same(jax.tree.map(lambda leaf: leaf[i], actual), expected)


def test_scan_over_steps(problem):
  loss_fn, theta, inputs, prior = problem
  def step(theta, key):
    grads, aux = jax.grad(loss_fn, has_aux=True)(theta, inputs, prior, key)
    return jax.tree.map(lambda p, g: p - 0.1 * g, theta, grads), aux.grad_norm
  keys = jax.random.split(jax.random.key(1), 3)
  actual, norms = jax.jit(lambda theta: jax.lax.scan(step, theta, keys))(theta)
  one_step, expected = jax.jit(step), theta
  for i, key in enumerate(keys):
    expected, norm = one_step(expected, key)
    np.testing.assert_allclose(norms[i], norm, rtol=1e-4)
  assert_same(actual, expected)


def test_pmap_over_8_devices(problem, plain):
  loss_fn, theta, inputs, prior = problem
  shards = jax.tree.map(lambda leaf: leaf.reshape((8, BATCH // 8) + leaf.shape[1:]), inputs)
  def device_fn(inputs):
    grads, aux = jax.grad(loss_fn, has_aux=True)(theta, inputs, prior, jax.random.key(0))
    return jax.lax.pmean(grads, "views"), aux.t
  actual, t = jax.pmap(device_fn, axis_name="views")(shards)
  assert_same(jax.tree.map(lambda leaf: np.asarray(leaf)[5], actual), plain[0])
  np.testing.assert_array_equal(np.asarray(t).reshape(-1), plain[1].t)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_8_devices(problem, plain, check_vma):
  """Checks grad of the pmean of the loss with check_vma, and pmean of the gradient without."""
  loss_fn, theta, inputs, prior = problem
  mesh = Mesh(np.array(jax.devices()), ("views",))
  def device_fn(theta, inputs, prior, key):
    local = lambda theta: loss_fn(theta, inputs, prior, key)[0]  # noqa: E731
    if check_vma:
      return jax.grad(lambda theta: jax.lax.pmean(local(theta), "views"))(theta)
    return jax.lax.pmean(jax.grad(local)(theta), "views")
  sharded = jax.shard_map(device_fn, mesh=mesh, in_specs=(P(), P("views"), P(), P()), out_specs=P(),
                          check_vma=check_vma)
  assert_same(jax.jit(sharded)(theta, inputs, prior, jax.random.key(0)), plain[0])


def test_shard_map_of_a_replicated_image(schedule, network):
  """Checks the gradient of a replicated x, the mean over the draws of all devices."""
  denoise, prior = network
  mesh = Mesh(np.array(jax.devices()), ("views",))

  def loss_fn(x, index):
    images = jnp.broadcast_to(x[None], (index.shape[0], 6))
    cond = jnp.ones((index.shape[0], 3))
    return score_distillation(denoise, prior, schedule, images, jax.random.key(0), cond, index=index)[0]

  def device_fn(x, index):
    return jax.grad(lambda x: jax.lax.pmean(loss_fn(x, index), "views"))(x)

  x, index = jnp.linspace(-1, 1, 6), jnp.arange(BATCH)
  sharded = jax.shard_map(device_fn, mesh=mesh, in_specs=(P(), P("views")), out_specs=P())
  assert_same(jax.jit(sharded)(x, index), jax.jit(jax.grad(loss_fn))(x, index))


def test_gradient_of_a_mean_over_keys(schedule, network):
  """Checks vmap inside grad, with many draws for a single image."""
  denoise, prior = network
  x, keys = jnp.linspace(-1, 1, 6)[None], jax.random.split(jax.random.key(3), 4)

  def loss_fn(x, key):
    return score_distillation(denoise, prior, schedule, x, key, jnp.ones((1, 3)))[0]

  actual = jax.jit(jax.grad(lambda x: jax.vmap(lambda key: loss_fn(x, key))(keys).mean()))(x)
  grad_fn = jax.jit(jax.grad(loss_fn))
  assert_same(actual, jnp.stack([grad_fn(x, key) for key in keys]).mean(0))


def count(jaxpr, name):
  """Counts a primitive in a jaxpr and its inner jaxprs."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == name
    for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      total += count(inner, name) if hasattr(inner, "eqns") else 0
  return total


def test_the_network_is_absent_from_the_backward_pass(schedule, network):
  denoise, prior = network
  cond = dict(cond=jnp.ones((2, 3)), uncond=jnp.zeros((2, 3)))
  def loss_fn(x, prior):
    return score_distillation(guided(denoise, "dreamfusion", 3.0), prior, schedule, x, jax.random.key(0), cond)[0]
  x = jnp.ones((2, 6))
  forward = count(jax.make_jaxpr(loss_fn)(x, prior).jaxpr, "dot_general")
  both = count(jax.make_jaxpr(jax.value_and_grad(loss_fn, argnums=(0, 1)))(x, prior).jaxpr, "dot_general")
  assert forward == both == 3
  # The counter detects a differentiated network.
  through = jax.grad(lambda x: jnp.sum(denoise(prior, x, jnp.array([3, 4]), cond["cond"]) ** 2))
  assert count(jax.make_jaxpr(through)(x).jaxpr, "dot_general") > 3


def test_the_prior_gets_no_gradient(problem):
  loss_fn, theta, inputs, prior = problem
  key = jax.random.key(0)
  grads = jax.jit(jax.grad(lambda prior: loss_fn(theta, inputs, prior, key)[0]))(prior)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))
  through_aux = jax.jit(jax.grad(lambda prior: jnp.sum(loss_fn(theta, inputs, prior, key)[1].grad_norm)))(prior)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(through_aux))


def test_half_precision_image(schedule, network):
  denoise, prior = network
  def half_denoise(params, z, t, cond):
    assert z.dtype == jnp.bfloat16
    return denoise(params, z.astype(jnp.float32), t, cond)
  x = jnp.linspace(-1, 1, 24).reshape(4, 6).astype(jnp.bfloat16)
  def loss_fn(x):
    return score_distillation(half_denoise, prior, schedule, x, jax.random.key(0), jnp.ones((4, 3)))
  grads, aux = jax.jit(jax.grad(loss_fn, has_aux=True))(x)
  assert grads.dtype == jnp.bfloat16 and aux.grad_norm.dtype == jnp.float32
  norms = np.linalg.norm(np.asarray(grads, np.float32), axis=1) * 4
  np.testing.assert_allclose(norms, aux.grad_norm, rtol=0.02)
