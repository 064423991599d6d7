"""What holds for all of the family, called by name through `score_distillation`."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided

B = 4
NAMES = [name for name, record in ESTIMATORS.items() if record.term is None]
"""Estimators that act on x only."""


def count(jaxpr, name):
  """How often a primitive occurs in a jaxpr, inner ones included (the body of a scan once)."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == name
    for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      total += count(inner, name) if hasattr(inner, "eqns") else 0
  return total


@pytest.fixture(scope="module")
def problem(schedule, network):
  """(name, x, params, key) -> (loss, aux) of the small network, guided, with what the name asks for."""
  denoise, params = network
  rng = np.random.default_rng(0)
  c, u, n = (jnp.asarray(rng.normal(size=(B, 3)), jnp.float32) for _ in range(3))
  cond = dict(cond=c, uncond=u, negative=n)
  options = {"csd": dict(negative_weight=0.5), "dds": dict(source_x=jnp.ones((B, 6)), source_cond=dict(cond, cond=n)),
             "vsd": dict(score_fn=denoise, score_params=jax.tree.map(lambda a: a + 0.1, params), score_cond=c)}
  options["pds"] = options["dds"]

  def answer(params, z, t, cond):
    return denoise(params, z.astype(jnp.float32), t, cond).astype(z.dtype)

  def loss_fn(name, x, params, key):
    own = options.get(name, {})
    if "source_x" in own:
      own = dict(own, source_x=own["source_x"].astype(x.dtype))
    if name == "vsd":
      own = dict(own, score_fn=answer)
    return score_distillation(guided(answer, "diffusers", 3.0), params, schedule, x, key, cond, estimator=name,
                              t=jnp.array([150, 400, 650, 900]), options=own)

  return loss_fn, params


X = jnp.linspace(-1.0, 1.0, 6 * B).reshape(B, 6)


@pytest.mark.parametrize("name", NAMES)
def test_under_jit_and_vmap_and_in_half_precision(problem, name):
  """The key counts, and nothing but the key; the prior gets no gradient."""
  loss_fn, params = problem
  grad_fn = jax.jit(jax.grad(lambda x, key: loss_fn(name, x, params, key), has_aux=True))
  grads, aux = grad_fn(X, jax.random.key(0))
  loss = lambda x, params: loss_fn(name, x, params, jax.random.key(0))[0]  # noqa: E731
  plain, of_prior = jax.grad(loss, argnums=(0, 1))(X, params)
  np.testing.assert_allclose(grads, plain, rtol=1e-3, atol=1e-5)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_prior))
  assert np.isfinite(grads).all() and np.abs(grads).max() > 1e-4 and aux.eps_hat.shape == X.shape
  np.testing.assert_allclose(B * np.linalg.norm(grads, axis=1), aux.grad_norm, rtol=1e-4)
  keys = jax.random.split(jax.random.key(1), 2)
  several, _ = jax.vmap(grad_fn)(jnp.stack([X, -X]), keys)
  np.testing.assert_allclose(several[1], grad_fn(-X, keys[1])[0], rtol=1e-3, atol=1e-5)
  again, other = (np.asarray(grad_fn(X, jax.random.key(i))[0]) for i in (0, 1))
  np.testing.assert_array_equal(again, grads)
  assert np.abs(other - again).max() > 1e-6
  half, _ = grad_fn(X.astype(jnp.bfloat16), jax.random.key(0))
  assert half.dtype == jnp.bfloat16 and np.isfinite(np.asarray(half, np.float32)).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_ldiff_differentiates_the_network(problem, name):
  loss_fn, params = problem
  loss = lambda x, params: loss_fn(name, x, params, jax.random.key(0))[0]  # noqa: E731
  forward = count(jax.make_jaxpr(loss)(X, params).jaxpr, "dot_general")
  both = count(jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(X, params).jaxpr, "dot_general")
  assert forward == both >= 3
  # Of one network call there are three products; a vector-Jacobian product would add one at least.
  assert (forward > 3) == (name in ("ldiff", "vsd", "asd", "ism", "sdi", "cds"))


@pytest.mark.parametrize("name", ["sds", "asd", "sdi", "cds"])
def test_draws_go_by_the_index_in_the_whole_batch(schedule, network, name):
  """Examples alike but for their index draw apart, and one moved to another place takes its draws along."""
  denoise, params = network
  side = jnp.ones((1, 3))
  guide = guided(denoise, "diffusers", 3.0)

  @jax.jit
  def gradients(index):
    x = jnp.full((B, 6), 0.3)
    sides = jnp.broadcast_to(side, (B, 3))
    loss = lambda x: score_distillation(guide, params, schedule, x, jax.random.key(0),  # noqa: E731
                                        dict(cond=sides, uncond=0 * sides), estimator=name, index=index,
                                        t=jnp.full(B, 500))[0]
    return jax.grad(loss)(x)

  first, moved = (np.asarray(gradients(index)) for index in (jnp.arange(B), jnp.array([2, 0, 7, 1])))
  np.testing.assert_allclose(moved[[1, 3, 0]], first[:3], rtol=1e-3, atol=1e-6)
  apart = np.abs(first[:, None] - first[None]).max(-1) + np.eye(B)
  assert apart.min() > 1e-4 and np.abs(moved[2:3] - first).max(1).min() > 1e-4


def test_mistakes_are_told(problem, schedule, network):
  denoise, params = network
  args = (params, schedule, X, jax.random.key(0))
  cond = jnp.ones((B, 3))
  call = lambda fn, cond, name, **options: jax.eval_shape(  # noqa: E731
    lambda: score_distillation(fn, *args, cond, estimator=name, options=options))
  with pytest.raises(ValueError, match="give it a denoiser of guidance.guided"):
    call(denoise, cond, "csd")
  with pytest.raises(ValueError, match="asks for a negative prompt, but cond has only cond, uncond"):
    call(guided(denoise, "diffusers", 3.0), dict(cond=cond, uncond=cond), "nfsd")
  with pytest.raises(TypeError, match="strength"):
    call(denoise, cond, "asd", strength=1.0)
  with pytest.raises(TypeError, match="source_x"):
    call(denoise, cond, "dds")
