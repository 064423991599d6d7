"""The functions within programs of others: Equinox, second derivatives, NumPy, export, explicit meshes, precision."""
import inspect
import pydoc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from sds_jax.diffusion.distillation import inject, score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import flow_schedule, schedule_from_config
from sds_jax.diffusion.variational import score_loss
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.types import Schedule
from sds_jax.views.lights import Shading

KEY, SCHEDULE = jax.random.key(0), schedule_from_config({})
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
NAMES = sorted(set(ESTIMATORS))


def network(params, z, t, cond):
  return jnp.tanh(params.astype(z.dtype) * z + cond.astype(z.dtype))


def distil(x, name="sds", denoise=network, params=jnp.float32(0.5), schedule=SCHEDULE, batch=4, **arguments):
  """Calls an estimator with everything that it needs."""
  ones = jnp.ones((batch, 1))
  cond = dict(cond=ones, uncond=0 * ones, negative=-ones)
  options = {}
  if name in ("dds", "pds"):
    options = dict(source_x=0.5 * x, source_cond=cond)
  if name == "vsd":
    options = dict(score_fn=denoise, score_params=params, score_cond=ones)
  if name in ("ism", "sdi"):
    options = dict(steps=2)
  return score_distillation(guided(denoise, "diffusers", 3.0), params, schedule, x, KEY, cond, options=options,
                            estimator=ESTIMATORS[name].fn, **arguments)


DISTILLED = jax.jit(jax.grad(lambda x: distil(x)[0]))


@pytest.fixture(scope="module")
def mlp():
  """An Equinox module with functions among its leaves: activations, a Lambda, and dropout out of use."""
  return eqx.nn.Sequential([eqx.nn.MLP(3, 3, 4, 1, activation=jax.nn.gelu, key=KEY), eqx.nn.Lambda(jnp.tanh),
                            eqx.nn.Dropout(inference=True)])


def by_equinox(model, z, t, cond):
  return jax.vmap(model)(z)


@pytest.mark.parametrize("name", NAMES)
def test_equinox_modules_in_every_estimator(mlp, name):
  jax.eval_shape(lambda x: jax.grad(lambda x: distil(x, name, by_equinox, mlp)[0])(x), X)


def test_equinox_gradients(mlp):
  """Compares with the module in a closure, and learns a module by `score_loss` and `filter_grad`."""
  by_params, closed = (jax.jit(jax.grad(lambda x: score_distillation(d, p, SCHEDULE, x, KEY, None)[0]))(X)
                       for d, p in ((by_equinox, mlp), (lambda params, *rest: by_equinox(mlp, *rest), None)))
  np.testing.assert_array_equal(by_params, closed)
  grads = eqx.filter_jit(eqx.filter_grad(lambda model: score_loss(by_equinox, model, SCHEDULE, X, KEY, None)))(mlp)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-3
  none = eqx.filter_jit(eqx.filter_grad(lambda model: distil(X, "vsd", by_equinox, model)[0]))(mlp)
  assert all(not leaf.any() for leaf in jax.tree.leaves(none))


def test_pullbacks_take_python_numbers():
  for outer in (2.0, np.float32(2.0), jnp.float32(2.0)):
    np.testing.assert_array_equal(jax.vjp(lambda x: inject(x, X), X)[1](outer)[0], 2 * X)
  distillation = jax.vjp(lambda x: distil(x)[0], X)[1]
  np.testing.assert_array_equal(distillation(1.0)[0], jax.grad(lambda x: distil(x)[0])(X))


def test_forward_over_reverse_equals_reverse_over_reverse():
  """Checks Hessian products of a program with a curved generator and an ordinary loss, against differences."""
  def loss(theta):
    return distil(jnp.sin(theta)[None] * jnp.ones((4, 1)))[0] + jnp.sum(theta**3)

  @jax.jit
  def products(theta, v):
    gradient = jax.grad(loss)
    return (jax.jvp(gradient, (theta,), (v,))[1], jax.grad(lambda theta: gradient(theta) @ v)(theta),
            jax.linearize(gradient, theta)[1](v), jax.hessian(loss)(theta) @ v)

  theta, v = X[0], X[1]
  forward, *others = products(theta, v)
  for other in others:
    np.testing.assert_allclose(other, forward, rtol=1e-5)
  # The residual is a constant: the term contributes the cotangent times the second derivative of the generator.
  cotangent = DISTILLED(jnp.sin(theta)[None] * jnp.ones((4, 1))).sum(0)
  np.testing.assert_allclose(forward, (6 * theta - jnp.sin(theta) * cotangent) * v, rtol=1e-4, atol=1e-5)


def test_forward_mode_of_the_scalar_raises():
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda x: inject(x, X), (X,), (X,))


@pytest.mark.parametrize("name, with_factor", [
  ("scale", lambda x, w: distil(x, scale=w)[0]), ("clip_norm", lambda x, w: distil(x, clip_norm=w / 20)[0]),
  ("weighting", lambda x, w: distil(x, weighting=lambda s, t: w * s.sigma[t])[0]),
  ("guidance", lambda x, w: score_distillation(
    guided(network, "diffusers", w), jnp.float32(0.5), SCHEDULE, x, KEY,
    dict(cond=jnp.ones((4, 1)), uncond=jnp.zeros((4, 1))))[0])])
def test_hyper_gradients(name, with_factor):
  """Compares the derivative of the squared gradient in a factor with differences; the first derivative is 0."""
  square = lambda w: jnp.sum(jax.grad(with_factor)(X, w) ** 2)  # noqa: E731
  expected = (square(jnp.float32(2.1)) - square(jnp.float32(1.9))) / 0.2
  np.testing.assert_allclose(jax.grad(square)(jnp.float32(2.0)), expected, rtol=2e-3)
  assert abs(expected) > 1e-4 and jax.grad(with_factor, argnums=1)(X, jnp.float32(2.0)) == 0


def test_the_network_is_never_differentiated():
  """Checks a network that has no derivative."""
  @jax.custom_jvp
  def forward_only(z):
    return z

  @forward_only.defjvp
  def _(primals, tangents):
    raise AssertionError("differentiated")

  jax.grad(lambda x: distil(x, denoise=lambda params, z, t, cond: forward_only(params * z))[0])(X)


def test_numpy_schedules_and_lists():
  tau = np.arange(1, 1001) / 1000
  own, t = Schedule(alpha=1 - tau, sigma=tau), np.array([3, 500, 7, 999])
  expected = jax.grad(lambda x: distil(x, schedule=flow_schedule(1000), t=jnp.asarray(t, jnp.int32))[0])(X)
  for times in (t, t.tolist(), jnp.asarray(t)):
    for transform in (lambda f: f, jax.jit):
      actual = transform(jax.grad(lambda x: distil(x, schedule=own, t=times)[0]))(X)
      np.testing.assert_allclose(actual, expected, rtol=1e-6)
  score_loss(lambda p, z, t, c: z, None, own, X, KEY, None, index=[0, 1, 2, 3])


def test_export_of_functions_with_dataclasses():
  def fn(schedule, x, key, shading, grid):
    grads, aux = jax.grad(lambda x: distil(x, schedule=schedule), has_aux=True)(x)
    return grads, aux, shading, grid

  arguments = (SCHEDULE, X, KEY, Shading(jnp.int32(0), jnp.float32(1), jnp.float32(0)), Occupancy(jnp.ones((2, 2, 2))))
  fn = jax.jit(fn)
  restored = export.deserialize(export.export(fn)(*arguments).serialize()).call(*arguments)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), restored, fn(*arguments))


def test_guided_denoisers_as_static_arguments():
  step = jax.jit(lambda denoise, x: denoise(jnp.float32(1), x, jnp.zeros(4, jnp.int32), dict(
    cond=jnp.ones((4, 1)), uncond=jnp.zeros((4, 1)))), static_argnums=0)
  plain, array = guided(network, "diffusers", 2.0), guided(network, "diffusers", jnp.full(4, 2.0))
  np.testing.assert_allclose(step(plain, X), step(array, X), rtol=1e-6)
  assert array == guided(network, "diffusers", jnp.full(4, 2.0)) != guided(network, "diffusers", jnp.full(4, 3.0))
  with pytest.raises(ValueError, match="traced scale"):
    jax.eval_shape(lambda scale: hash(guided(network, "diffusers", scale)), 2.0)


def test_estimators_of_ones_own():
  """Checks further values in aux.extras, a float16 residual too long for float16, and a weighting that returns 1.0."""
  def mine(denoise_fn, params, schedule, x, t, eps, cond, keys):
    eps_hat = jnp.full_like(x, 300.0)
    return eps_hat.astype(jnp.float16), dict(eps_hat=eps_hat, x0_hat=x, agreement=t * 2, parts=dict(norm=eps_hat))

  for weighting in (lambda schedule, t: 1.0, lambda schedule, t: 1, lambda schedule, t: jnp.ones(()), "uniform"):
    _, aux = score_distillation(network, None, SCHEDULE, X, KEY, None, estimator=mine, weighting=weighting)
    np.testing.assert_allclose(aux.grad_norm, np.full(4, 300 * np.sqrt(3)), rtol=1e-5)
  np.testing.assert_array_equal(aux.extras["agreement"], 2 * aux.t)
  assert set(aux.extras) == {"agreement", "parts"}


def test_a_loss_scale_in_float16():
  """Checks a cotangent that float16 cannot hold, under a loss scale that float16 cannot hold."""
  scaled = jax.grad(lambda x: 2.0**17 * inject(x, jnp.full(3, 1e-8)))(jnp.ones(3, jnp.float16))
  assert scaled.dtype == jnp.float16
  np.testing.assert_allclose(scaled, np.full(3, 2.0**17 * 1e-8), rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_of_every_estimator(name, dtype):
  """Checks float64 throughout for float64 images, and float32 residuals for half precision."""
  with jax.enable_x64(dtype == jnp.float64):
    x = jax.ShapeDtypeStruct((4, 3), dtype)
    (loss, aux), grad = jax.eval_shape(jax.value_and_grad(lambda x: distil(x, name), has_aux=True), x)
  wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
  assert grad.dtype == aux.x0_hat.dtype == aux.eps.dtype == dtype
  assert loss.dtype == aux.grad_norm.dtype == wide


@pytest.mark.parametrize("schedule", ["flow", "exploding"])
@pytest.mark.parametrize("name", ["pds", "sdi"])
def test_schedules_with_equal_signal_to_noise_ratios_give_equal_residuals(name, schedule):
  """Compares with the variance-preserving form, under a network that depends on z over its scale."""
  tau = np.arange(1, 101) / 100
  own = Schedule(1 - tau, tau) if schedule == "flow" else Schedule(np.ones(100), np.geomspace(0.1, 20, 100))
  total = np.hypot(own.alpha, own.sigma)

  def residual(schedule, total):
    def denoise(params, z, t, cond):
      return network(params, z / jnp.asarray(total, jnp.float32)[t][:, None], t, cond)

    return distil(X, name, denoise, schedule=schedule, weighting="uniform", t=np.array([20, 50, 70, 90]))[1].grad_norm

  expected = residual(Schedule(own.alpha / total, own.sigma / total), np.ones(100))
  np.testing.assert_allclose(residual(own, total), expected, rtol=5e-3)


def test_pure_noise():
  """Checks SJC at alpha = 0, where s is infinite, against SDS, with and without the control variate."""
  last = np.full(4, 99)
  sds, sjc = (distil(X, name, schedule=flow_schedule(100), t=last)[1] for name in ("sds", "sjc"))
  np.testing.assert_allclose(sjc.grad_norm, sds.grad_norm, rtol=1e-6)
  np.testing.assert_array_equal(sjc.x0_hat, 0 * X)
  # A traced t cannot be refused; the weight is 0.
  aux = jax.jit(lambda t: distil(X, schedule=flow_schedule(100), t=t, weighting="sigma_over_alpha")[1])(last)
  np.testing.assert_array_equal(aux.grad_norm, np.zeros(4))


def test_schedules_of_one_point():
  for spec in (((0.3, 0.98),), [[0.0, 0.98]], np.array([[1.0, 0.98]])):
    np.testing.assert_array_equal(schedule_value(spec, jnp.array([0.0, 0.3, 1.0])), np.full(3, np.float32(0.98)))
  one = schedule_from_config(dict(num_train_timesteps=1))
  assert np.isfinite(distil(X, schedule=one)[1].grad_norm).all()


@pytest.fixture(scope="module")
def explicit():
  return NamedSharding(jax.make_mesh((4,), ("views",), devices=jax.devices()[:4]), PartitionSpec("views"))


@pytest.mark.parametrize("name", NAMES)
def test_explicit_meshes_in_every_estimator(explicit, name):
  """Checks index and t sharded like the batch, outside of a mesh's context and inside, with a schedule made there."""
  x, index, t = (jax.device_put(a, explicit) for a in (X, jnp.arange(4), jnp.array([100, 300, 500, 700])))
  run = lambda schedule, t: jax.eval_shape(jax.grad(  # noqa: E731
    lambda x, i, t: distil(x, name, schedule=schedule, index=i, t=t)[0]), x, index, t)
  assert run(SCHEDULE, t).sharding.spec[0] == "views"
  with jax.set_mesh(explicit.mesh):
    run(schedule_from_config({}), t)
    run(SCHEDULE, None)


def test_explicit_meshes_give_the_same_numbers(explicit):
  x, index = (jax.device_put(a, explicit) for a in (X, jnp.arange(4)))
  with jax.set_mesh(explicit.mesh):
    schedule = schedule_from_config({})
    actual = jax.jit(jax.grad(lambda x, i: distil(x, schedule=schedule, index=i, antithetic=True, clip_norm=0.1)[0]))(
      x, index)
    cond = jax.device_put(jnp.ones((4, 1)), explicit)
    jax.jit(lambda x, cond, index: score_loss(network, jnp.float32(1), schedule, x, KEY, cond, index=index))(
      x, cond, index)
  expected = jax.jit(jax.grad(lambda x: distil(x, antithetic=True, clip_norm=0.1)[0]))(X)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_help_shows_the_options_of_an_estimator():
  for name, option in dict(ism="delta_t", csd="negative_weight", vsd="score_fn", hifa="denoise_fn").items():
    assert option in inspect.signature(ESTIMATORS[name]).parameters
    assert option in pydoc.render_doc(ESTIMATORS[name], renderer=pydoc.plaintext)
