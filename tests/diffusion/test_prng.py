"""Draws over examples, with keys of every PRNG implementation of JAX."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import prng
from sds_jax.diffusion import timesteps
from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.schedules import draw_noise, flow_schedule
from sds_jax.fields import background
from sds_jax.training.keys import step_keys
from sds_jax.views import cameras, lights

OTHERS = ("rbg", "unsafe_rbg")
ALL, LAST = jnp.arange(4), jnp.arange(2, 4)


@pytest.fixture(scope="module", params=OTHERS)
def key(request):
  return jax.random.key(3, impl=request.param)


DRAWS = {
  "noise": lambda key, index: draw_noise(key, index, jnp.zeros((len(index), 3))),
  "antithetic noise": lambda key, index: draw_noise(key, index, jnp.zeros((len(index), 3)), antithetic=True),
  **{f"{name} t": lambda key, index, draw=draw: draw(key, index, (0.0, 1.0), 1000, 4)
     for name, draw in timesteps.SAMPLERS.items()},
  "stratified cameras": lambda key, index: cameras.sample_cameras(key, index, 4)[0].position,
  "cameras": lambda key, index: jax.vmap(lambda k: cameras.sample_camera(k)[0].position)(prng.example_keys(key, index)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_an_examples_draw_does_not_depend_on_its_batch(key, name):
  whole, part = DRAWS[name](key, ALL), DRAWS[name](key, LAST)
  np.testing.assert_array_equal(whole[2:], part)
  assert len(np.unique(np.asarray(whole).reshape(4, -1)[:, 0])) > 1


def test_antithetic_pairs_cancel(key):
  pairs = DRAWS["antithetic noise"](key, ALL)
  np.testing.assert_array_equal(pairs[::2], -pairs[1::2])


@pytest.mark.parametrize("draw", [
  lambda key: cameras.sample_camera(key)[0].position, lambda key: lights.sample_light(key, jnp.ones(3)),
  lambda key: lights.sample_shading(key, jnp.float32(0.9)).ambient, background.plain_colour,
  lambda key: step_keys(key, jnp.int32(2))["views"]])
def test_single_draws_may_be_vmapped_over_keys(key, draw):
  keys = jax.random.split(key, 3)
  together, alone = jax.vmap(draw)(keys), [draw(k) for k in keys]
  data = lambda a: jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a  # noqa: E731
  for a, b in zip(together, alone):
    np.testing.assert_allclose(data(a), data(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, options", [("asd", dict(shift=1.0)), ("cds", {}), ("sdi", dict(steps=2))])
def test_further_draws_of_an_estimator_follow_the_example(key, name, options):
  denoise = lambda params, z, t, cond: jnp.broadcast_to(t.astype(z.dtype)[:, None] / 1000, z.shape)  # noqa: E731

  def residual(index):
    x = jnp.ones((len(index), 2))
    keys = jax.random.split(key, 4)[index]  # of the caller's implementation
    t = jnp.full(len(index), 500)
    return ESTIMATORS[name](denoise, None, flow_schedule(1000), x, t, x, None, keys, **options)[0]

  np.testing.assert_allclose(residual(ALL)[2:], residual(LAST), rtol=1e-5)
  assert len(np.unique(residual(ALL)[:, 0])) == 4


def test_a_vmapped_call_equals_single_calls(key):
  def eps(key):
    return score_distillation(lambda p, z, t, c: z, None, flow_schedule(9), jnp.ones((2, 3)), key, None)[1].eps

  keys = jax.random.split(key, 3)
  np.testing.assert_allclose(jax.vmap(eps)(keys)[2], eps(keys[2]), rtol=1e-6)


def test_threefry_draws_are_those_of_jax():
  for key in (jax.random.key(5), jax.random.PRNGKey(5)):
    assert prng.as_threefry(key) is key
    expected = [jax.random.normal(jax.random.fold_in(key, i), (3,)) for i in range(4)]
    np.testing.assert_allclose(DRAWS["noise"](key, ALL), expected, rtol=1e-6)


def test_raw_keys_and_the_default_implementation():
  typed = prng.as_threefry(jax.random.key(7, impl="rbg"))
  with jax.default_prng_impl("rbg"):
    assert prng.as_threefry(jax.random.PRNGKey(7)) == typed
    assert jax.random.key_impl(prng.seeded_key(0)) == "threefry2x32"
  assert prng.seeded_key(0) == jax.random.key(0, impl="threefry2x32")
  assert prng.as_threefry(jax.random.key(8, impl="rbg")) != typed


@pytest.mark.parametrize("key", [0, None, jnp.zeros(2), [1, 2]])
def test_no_key(key):
  with pytest.raises(ValueError, match="legal: one key"):
    prng.as_threefry(key)


def test_several_keys():
  with pytest.raises(ValueError, match=r"shape \(2,\).*use vmap"):
    prng.as_threefry(jax.random.split(jax.random.key(0)))
