"""The prior as a whole: folding of pixels, what denoise gives, and the messages of build."""
import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib, sources, spaces
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.views import cameras


@pytest.fixture(scope="module")
def built(prior_folder):
  return prior_lib.build(prior_folder)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_space_to_depth_layout():
  image = draw(2, 6, 9, 3)
  x = spaces.space_to_depth(image, 3)
  assert x.shape == (2, 2, 3, 27)
  for b, row, column, c in np.ndindex(2, 6, 9, 3):
    assert x[b, row // 3, column // 3, c * 9 + row % 3 * 3 + column % 3] == image[b, row, column, c]


@pytest.mark.parametrize("shape, block", [((2, 8, 4, 3), 4), ((8, 8, 5), 2), ((2, 3, 4, 4, 1), 1)])
def test_depth_to_space_inverts(shape, block):
  image = draw(*shape)
  np.testing.assert_array_equal(spaces.depth_to_space(spaces.space_to_depth(image, block), block), image)


def test_folding_checks_shapes():
  with pytest.raises(ValueError, match="an image of 6x8 can't be cut into blocks of 4x4"):
    spaces.space_to_depth(jnp.zeros((6, 8, 3)), 4)
  with pytest.raises(ValueError, match=r"6 channels are not divisible by 2\^2"):
    spaces.depth_to_space(jnp.zeros((1, 1, 6)), 2)


def test_facts(built, prior_folder):
  prior, params = built
  assert (prior.name, prior.image_size, prior.x_shape, prior.prediction_type, prior.camera_dim) == (
    str(prior_folder), 8, (4, 4, 12), "v_prediction", 5)
  assert prior.vocabulary == {"a", "red", "blue", "cube", "cone"}
  assert prior.schedule.alpha.shape == (50,)
  assert (prior.x_bound, prior.source) == (1, sources.Source(str(prior_folder), prior_folder))
  assert list(params) == ["unet"]
  assert not any(isinstance(getattr(prior, field.name), jax.Array) for field in dataclasses.fields(prior))


def test_encode_and_decode(built, quick_jit):
  prior, params = built
  image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  x = quick_jit(prior.encode, params, image, jax.random.key(1))
  np.testing.assert_allclose(x, 2 * spaces.space_to_depth(image, 2) - 1, atol=1e-6)
  np.testing.assert_allclose(prior.decode(params, x), image, atol=1e-6)
  assert float(prior.decode(params, 3 * x).max()) == 1 and float(prior.decode(params, 3 * x).min()) == 0
  flat = quick_jit(prior.encode, params, jnp.full((1, 5, 5, 3), 0.75), jax.random.key(1))
  np.testing.assert_allclose(flat, jnp.full((1, 4, 4, 12), 0.5), atol=1e-6)
  with pytest.raises(ValueError, match=r"image has shape \(1, 4, 6, 3\), expected square images"):
    prior.encode(params, jnp.zeros((1, 4, 6, 3)), jax.random.key(1))


def test_denoise_gives_eps_from_v(built, unet, quick_jit):
  prior, params = built
  z, t = draw(3, 4, 4, 12).at[2].set(0.5).at[1].set(0.5), jnp.asarray([3, 40, 40])
  text, camera = draw(3, 8, 12, seed=1).at[2].set(0.1).at[1].set(0.1), draw(3, 5, seed=2)
  eps = quick_jit(prior.denoise, params, z, t, dict(text=text, camera=camera))
  v = quick_jit(unet[1].apply, {"params": unet[2]}, z, t, text, camera)
  for b in range(3):
    alpha, sigma = np.asarray(prior.schedule.alpha)[t[b]], np.asarray(prior.schedule.sigma)[t[b]]
    np.testing.assert_allclose(eps[b], alpha * v[b] + sigma * z[b], atol=1e-5)
  assert float(jnp.abs(eps[2] - eps[1]).max()) > 1e-3  # which differ in the camera alone


@pytest.fixture
def told(built, prior_folder):
  """(space, facts of the prior) -> (prior with a network that doubles its input, what the network was told)."""
  scheduler = json.loads((prior_folder / "scheduler" / "scheduler_config.json").read_text())

  def make(space, **facts):
    inputs = []
    unet = SimpleNamespace(apply=lambda variables, *given: inputs.extend(given) or 2 * given[0])
    return prior_lib.make_prior(built[0].source, space, unet, scheduler | dict(prediction_type="epsilon"),
                                **facts), inputs

  return make


def test_a_missing_camera_is_zeros(told):
  prior, inputs = told(spaces.pixel_space(8, 2), camera_dim=5)
  prior.denoise(dict(unet=None), draw(2, 4, 4, 12), jnp.asarray([3, 40]), dict(text=draw(2, 8, 12)))
  np.testing.assert_array_equal(inputs[3], np.zeros((2, 5)))


def test_rays_follow_the_image_at_the_input(told):
  """The network's input is z_t and then the camera's rays; an unknown camera has zeros."""
  prior, inputs = told(spaces.pixel_space(8, 2), camera_dim=cameras.CAMERA_DIM, ray_dim=cameras.RAY_DIM)
  assert (prior.x_shape, prior.ray_dim) == ((4, 4, 12), cameras.RAY_DIM)
  z, t, text = draw(2, 4, 4, 12), jnp.asarray([3, 40]), draw(2, 8, 12, seed=1)

  @jax.jit
  def everything(z, t, text):
    features = cameras.camera_features(cameras.orbit(0.4, 0.3, 2.6, 0.8))
    camera = jnp.stack([features, jnp.zeros_like(features)])
    eps = prior.denoise(dict(unet=None), z, t, dict(text=text, camera=camera))
    return eps, inputs, cameras.ray_features(features, 4), camera

  eps, given, rays, camera = everything(z, t, text)
  image = np.concatenate([z, np.stack([rays, np.zeros_like(rays)])], -1)
  for got, expected in zip(given, (image, t, text, camera), strict=True):
    np.testing.assert_allclose(got, expected, atol=1e-6)
  np.testing.assert_array_equal(eps, 2 * image[..., :12])


def test_embed(built):
  prior = built[0]
  text = prior.embed(["a red cube", "A blue cone!", ""])["text"]
  assert text.shape == (3, 8, 12) and text.dtype == jnp.float32
  assert float(jnp.abs(text[0] - text[1]).max()) > 1e-3
  with pytest.raises(ValueError, match="the prior doesn't know 'dog', 'green' in 'a green dog'; it knows: a, blue, "):
    prior.embed(["a red cube", "a green dog"])


def test_names_that_are_not_there(tmp_path, monkeypatch):
  with pytest.raises(CheckpointError, match="'sd3' is neither a name .'shapeworld', 'shapeworld-views', .* nor"):
    prior_lib.build("sd3")
  monkeypatch.setattr(sources, "shipped_folder", lambda name: tmp_path / "none")
  with pytest.raises(CheckpointError, match="the prior 'shapeworld' is not in this installation: .*none does not"):
    prior_lib.build("shapeworld")


@pytest.mark.parametrize("change, expected", [
  (dict(pixel_unshuffle=None), "_class_name=None is not supported; supported: 'StableDiffusionPipeline' .1.x and 2.x"),
  (dict(pixel_unshuffle=None, _class_name="LattePipeline"), "_class_name='LattePipeline' .*is not supported"),
  (dict(pixel_unshuffle=4), "the U-Net's in_channels is 12, expected 48"),
  (dict(image_size="8"), "image_size='8' should be a positive integer"),
  (dict(image_size=9), "image_size modulo pixel_unshuffle is 1, expected 0"),
  (dict(camera_dim=4), "camera_dim is 4, expected 5"),
  (dict(ray_dim=7), "ray_dim is 7, expected 18"),
  (dict(ray_dim=18), "camera_dim with rays is 5, expected 16")])
def test_parts_that_don_t_fit(prior_folder, tmp_path, change, expected):
  shutil.copytree(prior_folder, tmp_path / "p")
  index = json.loads((tmp_path / "p" / "model_index.json").read_text()) | change
  (tmp_path / "p" / "model_index.json").write_text(
    json.dumps({key: value for key, value in index.items() if value is not None}))
  with pytest.raises(CheckpointError, match=expected):
    prior_lib.build(tmp_path / "p")
