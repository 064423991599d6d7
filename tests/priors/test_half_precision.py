"""float16: outputs near float32, and a gradient of any scale."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import schema, settings
from sds_jax.priors import prior as prior_lib, published
from sds_jax.priors.half_precision import with_scaled_gradient
from sds_jax.settings.recipes import text3d


def square(params, x):
  """Results in float32 of arithmetic in float16."""
  half = x.astype(jnp.float16)
  return ((params * half * half).astype(jnp.float32), half.astype(jnp.float32))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_a_gradient_of_any_scale(scale):
  """Examples of quite different scales do not disturb each other."""
  x, params = jnp.linspace(0.5, 2, 6).reshape(2, 3), jnp.float16(0.5)
  per_example = jnp.asarray([[1.0], [1e-4]])
  weights = (scale * per_example * jnp.ones((2, 3)), scale * per_example * jnp.full((2, 3), 2.0))
  _, pull_back = jax.vjp(with_scaled_gradient(square), params, x)
  of_params, gradient = jax.jit(pull_back)(weights)
  np.testing.assert_allclose(gradient, scale * per_example * (x + 2), rtol=2e-3)
  assert of_params == 0  # frozen


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_a_gradient_of_no_scale(value):
  cotangents = (jnp.full((1, 3), value), jnp.zeros((1, 3)))
  _, pull_back = jax.vjp(with_scaled_gradient(square), jnp.float16(1), jnp.ones((1, 3)))
  gradient = pull_back(cotangents)[1]
  # A step with such a gradient is dropped by the training loop, so it must stay visible.
  assert bool(jnp.isfinite(gradient).all()) == (value == 0.0) and (value != 0.0 or not gradient.any())


def test_under_vmap():
  x, cotangent = jnp.ones((4, 1, 3)), jnp.asarray([1e-9, 1.0, 1e9, 0.0])[:, None, None] * jnp.ones((4, 1, 3))

  def gradient(x, c):
    return jax.vjp(lambda y: with_scaled_gradient(square)(jnp.float16(1), y), x)[1]((c, 0 * c))[0]

  np.testing.assert_allclose(jax.vmap(gradient)(x, cotangent), 2 * cotangent, rtol=2e-3)


def norm_error(a, b):
  return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.fixture
def pair(tiny_published, monkeypatch):
  """The same prior of one level in float32 and in float16, with parameters."""
  vae = tiny_published["sd15"]["vae"] | dict(
    block_out_channels=[8], down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"])
  monkeypatch.setattr(published, "PRIORS", {"sd15": tiny_published["sd15"] | dict(vae=vae)})
  return [prior_lib.build("sd15", dtype, random_weights=True) for dtype in ("float32", "float16")]


def test_outputs_and_gradient_are_near_float32(pair):
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(1, 8, 8, 3)), jnp.float32)
  z = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.float32)
  text = dict(text=jnp.asarray(rng.normal(size=(1, 8, 8)), jnp.float32))

  def compute(prior, params, *scales):
    @jax.jit
    def both(params, image, z, scale):
      x, pull_back = jax.vjp(lambda picture: prior.encode(params, picture, jax.random.key(0)), image)
      gradient = pull_back(scale * jnp.ones_like(x))[0] / scale
      return x, gradient, prior.denoise(params, z, jnp.asarray([400]), text)

    return [both(params, image, z, jnp.float32(scale)) for scale in scales]

  (wide,), narrow = compute(*pair[0], 1.0), compute(*pair[1], 1.0, 1e-7, 1e7)
  assert {leaf.dtype for leaf in jax.tree.leaves(pair[1][1])} == {jnp.dtype(jnp.float16)}
  for outputs in narrow:
    assert all(leaf.dtype == jnp.float32 for leaf in outputs)
    errors = [norm_error(got, expected) for got, expected in zip(outputs, wide)]
    assert max(errors) < 5e-3, errors
  assert norm_error(narrow[0][2], wide[2]) > 1e-6  # it is float16


def test_settings():
  config = text3d.from_words("sd15")
  config.prior.dtype = "float16"
  assert settings.validate(config).prior.dtype == "float16"
  config.distillation.estimator = "vsd"
  with pytest.raises(schema.ConfigError, match="config.prior.dtype='float16' is too narrow .*estimator='vsd' trains"):
    settings.validate(config)
