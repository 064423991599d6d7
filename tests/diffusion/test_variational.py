"""VSD: what it equals where the images' law is known, what its second network learns, who gets which gradient."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sds_jax.diffusion import lora
from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.schedules import per_example
from sds_jax.diffusion.variational import score_loss
from sds_jax.testbed import denoisers, laws

MEAN, STD = 0.7, 0.4


@pytest.fixture(scope="module")
def denoise(schedule):
  return denoisers.vp_denoiser(schedule)


def test_of_a_single_point_it_is_sds_sample_by_sample(schedule, denoise):
  """The exact score of a point at x gives eps_phi = (z - alpha x) / sigma = eps."""
  law, x = laws.gaussian(jnp.array([MEAN, -MEAN]), STD), jnp.array([[0.1, 0.5], [1.0, -2.0], [0.3, 0.3]])
  t, eps = jnp.array([50, 400, 900]), jax.random.normal(jax.random.key(0), x.shape)

  def of_the_point(phi, z, t, cond):
    return (z - per_example(schedule.alpha[t], z) * x) / per_example(schedule.sigma[t], z)

  sds, _ = ESTIMATORS["sds"](denoise, law, schedule, x, t, eps, None)
  vsd, _ = ESTIMATORS["vsd"](denoise, law, schedule, x, t, eps, None, score_fn=of_the_point, score_params=None)
  np.testing.assert_allclose(vsd, sds, atol=1e-5)
  assert np.abs(sds).max() > 0.1


def images(theta, key, count):
  """x = mu + tau xi: a family of Gaussians as a generator, theta = (mu, log tau)."""
  return theta["mean"] + jnp.exp(theta["log_std"]) * jax.random.normal(key, (count, 1))


def fit(schedule, denoise, score_fn, phi_of, learn=None, estimator="vsd", steps=1500):
  """(mean, std) that the family ends with; phi_of(theta, phi) is what the score network has at a step."""
  law = laws.gaussian(jnp.array([MEAN]), STD)
  optimizer, own = optax.adam(optax.cosine_decay_schedule(0.03, steps)), learn and optax.adam(0.01)

  def step(carry, key):
    theta, state, phi, phi_state = carry
    k_image, k_distil, k_phi = jax.random.split(key, 3)

    def loss_fn(theta, phi):
      x = images(theta, k_image, 256)
      options = dict(score_fn=score_fn, score_params=phi_of(theta, phi)) if estimator == "vsd" else {}
      loss, _ = score_distillation(denoise, law, schedule, x, k_distil, None, estimator=estimator, options=options)
      return loss + (score_loss(score_fn, phi, schedule, x, k_phi, None) if learn else 0.0)

    grads, phi_grads = jax.grad(loss_fn, argnums=(0, 1))(theta, phi)
    updates, state = optimizer.update(grads, state)
    if learn:
      phi_updates, phi_state = own.update(phi_grads, phi_state)
      phi = optax.apply_updates(phi, phi_updates)
    return (optax.apply_updates(theta, updates), state, phi, phi_state), None

  theta = dict(mean=jnp.float32(-0.5), log_std=jnp.float32(np.log(1.0)))
  phi = learn if learn else jnp.zeros(())
  carry = (theta, optimizer.init(theta), phi, own.init(phi) if learn else None)
  with jax.numpy_dtype_promotion("standard"):  # optax
    (theta, *_), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), steps)))(carry)
  return float(theta["mean"]), float(jnp.exp(theta["log_std"]))


def test_with_the_exact_score_it_recovers_mean_and_width(schedule, denoise):
  def own_law(theta, phi):
    return laws.gaussian(jnp.zeros(1), 0.0).replace(means=theta["mean"].reshape(1, 1),
                                                   stds=jnp.exp(theta["log_std"]).reshape(1))
  mean, std = fit(schedule, denoise, denoise, own_law)
  assert mean == pytest.approx(MEAN, abs=0.03) and std == pytest.approx(STD, rel=0.07)


def test_sds_collapses_the_width(schedule, denoise):
  mean, std = fit(schedule, denoise, None, lambda theta, phi: None, estimator="sds")
  assert mean == pytest.approx(MEAN, abs=0.03) and std < 0.25 * STD


def test_with_a_network_that_learns_it_recovers_mean_and_width(schedule, denoise):
  """phi = (mean, log std) of what it takes the images for: it never sees theta, only images."""
  def network(phi, z, t, cond):
    a, s = per_example(schedule.alpha[t], z), per_example(schedule.sigma[t], z)
    return s * (z - a * phi["mean"]) / (a**2 * jnp.exp(2 * phi["log_std"]) + s**2)

  begin = dict(mean=jnp.float32(0.0), log_std=jnp.float32(0.0))
  mean, std = fit(schedule, denoise, network, lambda theta, phi: phi, begin)
  assert mean == pytest.approx(MEAN, abs=0.06) and std == pytest.approx(STD, rel=0.15)


def test_particles_cover_both_modes_where_sds_draws_them_together(schedule, denoise):
  """40 particles, all begun at one place; their own law, a little blurred, is the score network's."""
  law = laws.dataset(jnp.array([[-1.0], [1.0]]), 0.1)
  start = 0.3 + 0.05 * jax.random.normal(jax.random.key(1), (40, 1))

  def descend(estimator):
    optimizer = optax.adam(0.02)

    def step(carry, key):
      x, state = carry
      def loss_fn(x):
        options = dict(score_fn=denoise, score_params=laws.dataset(x, 0.05)) if estimator == "vsd" else {}
        return 40 * score_distillation(denoise, law, schedule, x, key, None, estimator=estimator, options=options)[0]
      updates, state = optimizer.update(jax.grad(loss_fn)(x), state)
      return (optax.apply_updates(x, updates), state), None

    keys = jax.random.split(jax.random.key(2), 800)
    with jax.numpy_dtype_promotion("standard"):
      (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), keys))(start)
    return np.asarray(x[:, 0])

  vsd, sds = descend("vsd"), descend("sds")
  assert 0.3 < (vsd > 0).mean() < 0.7 and np.abs(np.abs(vsd) - 1).mean() < 0.2
  assert sds.std() < 0.2  # over all times at once the divergence is least between the modes


def test_each_branch_moves_its_own_parameters_only(schedule, network):
  """The image's gradient is the distillation's whether or not score_loss is added, and phi's is score_loss's."""
  denoise, prior = network
  cond, phi = jnp.ones((4, 3)), jax.tree.map(lambda leaf: leaf + 0.1, prior)

  def parts(theta, phi, with_loss, with_distillation):
    x = jnp.tanh(theta)
    total = 0.0
    if with_distillation:
      options = dict(score_fn=denoise, score_params=phi, score_cond=cond)
      total += score_distillation(denoise, prior, schedule, x, jax.random.key(0), cond, estimator="vsd",
                                  options=options)[0]
    if with_loss:
      total += score_loss(denoise, phi, schedule, x, jax.random.key(1), cond)
    return total

  theta = jax.random.normal(jax.random.key(2), (4, 6))
  grad = lambda *which: jax.jit(jax.grad(functools.partial(  # noqa: E731
    lambda with_loss, with_distillation, theta, phi: parts(theta, phi, with_loss, with_distillation), *which),
    argnums=(0, 1)))(theta, phi)
  both, distilled, learnt = grad(True, True), grad(False, True), grad(True, False)
  np.testing.assert_allclose(both[0], distilled[0], rtol=1e-5, atol=1e-7)
  assert not np.any(learnt[0]) and np.abs(both[0]).max() > 1e-3
  for a, b, c in zip(*(jax.tree.leaves(g[1]) for g in (both, learnt, distilled))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not np.any(c) and np.abs(a).max() > 1e-4


def test_the_bare_estimator_gives_phi_no_gradient_either(schedule, network):
  denoise, prior = network
  x, t = jnp.ones((2, 6)), jnp.array([100, 700])

  def total(phi):
    residual, _ = ESTIMATORS["vsd"](denoise, prior, schedule, x, t, 0.5 * x, jnp.ones((2, 3)), score_fn=denoise,
                                    score_params=phi, score_cond=jnp.ones((2, 3)))
    return jnp.sum(residual**2)

  assert all(not np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(prior)))


def test_score_loss_is_the_mean_squared_error(schedule, network):
  denoise, phi = network
  x, cond, t = jnp.linspace(-1, 1, 18).reshape(3, 6), jnp.ones((3, 3)), jnp.array([10, 500, 990])
  found = score_loss(denoise, phi, schedule, x, jax.random.key(4), cond, t=t)
  eps_key = jax.random.split(jax.random.key(4))[1]
  eps = np.stack([jax.random.normal(jax.random.fold_in(eps_key, b), (6,)) for b in range(3)])
  alpha, sigma = (np.asarray(a)[np.asarray(t)][:, None] for a in (schedule.alpha, schedule.sigma))
  z = (alpha * np.asarray(x) + sigma * eps).astype(np.float32)
  eps_phi = np.asarray(denoise(phi, jnp.asarray(z), t, cond))
  np.testing.assert_allclose(found, np.mean((eps_phi - eps) ** 2), rtol=1e-5)


def test_score_loss_draws_by_the_index_in_the_whole_batch(schedule, network):
  """The mean over single examples, each under its own index, is the batch's loss; t is drawn by it as well."""
  denoise, phi = network
  x, cond = jnp.linspace(-1, 1, 18).reshape(3, 6), jnp.ones((3, 3))
  loss = jax.jit(lambda x, cond, index: score_loss(denoise, phi, schedule, x, jax.random.key(4), cond, index=index))
  whole = loss(x, cond, jnp.arange(3))
  alone = [loss(x[b:b + 1], cond[:1], jnp.array([b])) for b in range(3)]
  np.testing.assert_allclose(np.mean(alone), whole, rtol=1e-4)
  assert abs(float(loss(x, cond, jnp.arange(3) + 5)) - float(whole)) > 1e-3


KERNELS = dict(attn=dict(to_q=dict(kernel=jnp.eye(6), bias=jnp.ones(6))), conv=dict(kernel=jnp.ones((3, 3, 2, 2))))


def test_adapters_begin_as_the_identity_and_leave_the_rest_alone():
  adapters = lora.init(jax.random.key(0), KERNELS, rank=3)
  assert set(adapters) == {"attn/to_q/kernel"}
  merged = lora.merge(KERNELS, adapters)
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(KERNELS)))
  down, up = np.asarray(adapters["attn/to_q/kernel"]["down"]), np.full((3, 6), 0.5, np.float32)
  moved = lora.merge(KERNELS, {"attn/to_q/kernel": dict(down=jnp.asarray(down), up=jnp.asarray(up))}, scale=2.0)
  np.testing.assert_allclose(moved["attn"]["to_q"]["kernel"], np.eye(6) + 2 * down @ up, rtol=1e-5)
  assert down.std() == pytest.approx(1 / 3, rel=0.5)


def test_adapters_of_one_shape_begin_apart():
  alike = {name: dict(kernel=jnp.eye(6)) for name in ("to_q", "to_k")}
  first, second = (pair["down"] for pair in lora.init(jax.random.key(0), alike, rank=3).values())
  assert np.abs(first - second).max() > 0.1


def test_only_adapters_get_a_gradient_and_types_stay():
  adapters = lora.init(jax.random.key(0), KERNELS, rank=2)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), KERNELS)
  assert lora.merge(half, adapters)["attn"]["to_q"]["kernel"].dtype == jnp.bfloat16

  def loss(params, adapters):
    return jnp.sum(lora.merge(params, adapters)["attn"]["to_q"]["kernel"] * jnp.arange(36.0).reshape(6, 6))

  of_base, of_adapters = jax.grad(loss, argnums=(0, 1))(KERNELS, adapters)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_base))
  assert np.abs(of_adapters["attn/to_q/kernel"]["up"]).max() > 0
  assert not np.any(of_adapters["attn/to_q/kernel"]["down"])  # while up is 0
  with pytest.raises(ValueError, match="no kernel of two dimensions matches 'nothing'"):
    lora.init(jax.random.key(0), KERNELS, match="nothing")
