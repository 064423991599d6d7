"""Published shapes with random weights: real trees, no files, finite numbers, nothing to be mistaken for."""
import json
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import families, prior as prior_lib, published, sources
from sds_jax.priors.families import deepfloyd, stable_diffusion, zero123
from sds_jax.priors.loading import checkpoint, files, random_weights
from sds_jax.views import poses

SD15 = dict(dtype=jnp.bfloat16, random_weights=True)


@pytest.fixture
def nothing_to_read(monkeypatch):
  """Whoever looks for a file of a prior fails."""
  for module, name in ((prior_lib, "find"), (families, "read_json"), (files, "check_file"), (sources, "default_hub")):
    monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("a file is looked for"))


@pytest.mark.parametrize("name", ["sd15", "if-m", "zero123"])
def test_the_tree_is_the_networks(tiny_published, nothing_to_read, name):
  prior, params = prior_lib.build(name, **SD15)
  assert set(params) == set(tiny_published[name]) - {"scheduler", "image_encoder"}
  for part, tree in params.items():
    model = checkpoint.COMPONENTS[part].network.from_config(tiny_published[name][part])
    expected = {path: leaf.shape for path, leaf in checkpoint.abstract_params(model).items()}
    drawn = traverse_util.flatten_dict(tree)
    assert {path: leaf.shape for path, leaf in drawn.items()} == expected
    assert {leaf.dtype for leaf in drawn.values()} == {jnp.dtype(jnp.bfloat16)}
  assert prior.x_shape == (8, 8, 3 if name == "if-m" else 4) and prior.name == name


def test_shapes_are_known_before_the_weights(tiny_published, nothing_to_read):
  _, weights = prior_lib.open_prior("sd15", **SD15)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), weights.shapes) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), weights.load())


def test_shapes_of_a_folder_are_known_before_its_weights(sd_folder):
  _, weights = prior_lib.open_prior(sd_folder)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), weights.shapes) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), weights.load())


def test_values():
  """Unit variance over the fan-in for kernels, ones for scales, small biases; each depends on its name."""
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
  tree = dict(a=dict(kernel=shape(3, 3, 16, 256), bias=shape(500), scale=shape(7)), b=dict(kernel=shape(3, 3, 16, 256)))
  drawn, again = random_weights.random_params(tree), random_weights.random_params(tree)
  other = random_weights.random_params(tree, seed=1)
  assert abs(np.std(drawn["a"]["kernel"]) * math.sqrt(9 * 16) - 1) < 0.02
  assert abs(np.mean(drawn["a"]["kernel"])) < 1e-3
  assert np.all(drawn["a"]["scale"] == 1)
  assert 0.01 < np.abs(drawn["a"]["bias"]).max() <= 0.02
  assert jax.tree.all(jax.tree.map(np.array_equal, drawn, again))
  for kernel in (drawn["b"]["kernel"], other["a"]["kernel"]):
    assert abs(np.corrcoef(np.ravel(drawn["a"]["kernel"]), np.ravel(kernel))[0, 1]) < 0.05


def test_parameters_reach_the_device_in_their_dtype_one_by_one(monkeypatch):
  put, arrays = jax.device_put, []
  monkeypatch.setattr(jax, "device_put", lambda array: arrays.append((array.shape, array.dtype)) or put(array))
  random_weights.random_params(dict(kernel=jax.ShapeDtypeStruct((8, 4), jnp.bfloat16),
                                    scale=jax.ShapeDtypeStruct((4,), jnp.bfloat16)))
  assert arrays == [((8, 4), jnp.bfloat16), ((4,), jnp.bfloat16)]


def test_what_it_computes_is_finite_in_bfloat16(tiny_published):
  prior, params = prior_lib.build("sd15", **SD15)
  image, text = jnp.zeros((2, 4, 4, 3)) + 0.3, prior.embed(["a red cube", ""])["text"]

  def run(params, image, text):
    x = prior.encode(params, image, jax.random.key(0))
    return x, prior.denoise(params, x, jnp.asarray([10, 900]), dict(text=text))

  x, eps = jax.jit(run)(params, image, text)
  for array in (x, eps):
    assert array.dtype == jnp.float32 and np.all(np.isfinite(array)) and 1e-3 < np.std(array) < 1e3


def test_random_features_of_a_photo(tiny_published, nothing_to_read):
  """A whole prediction from a photo, in bfloat16 and finite, without a file."""
  prior, params = prior_lib.build("zero123", **SD15)
  features = prior.photo.encode(jnp.full((16, 16, 3), 0.5))
  assert features["tokens"].shape == (1, 8) and features["x"].shape == (8, 8, 4)
  pose = poses.relative_pose(jnp.zeros(2), jnp.ones(2), jnp.float32(0.0), jnp.float32(0.0))

  def run(params, features, pose):
    cond = prior.photo.conditions(params, features, pose)
    return cond["text"], prior.denoise(params, jnp.ones((2, 8, 8, 4)), jnp.asarray([10, 900]), cond)

  for array in jax.jit(run)(params, features, pose):
    assert array.dtype == jnp.float32 and np.all(np.isfinite(array)) and 1e-3 < np.std(array) < 1e3


def test_text(tiny_published):
  prior, _ = prior_lib.open_prior("sd15", **SD15)
  text = prior.embed(["a red cube", "", "a red cube"])["text"]
  assert text.shape == (3, 77, 8) and text.dtype == jnp.float32
  assert np.array_equal(text[0], text[2]) and abs(np.corrcoef(np.ravel(text[0]), np.ravel(text[1]))[0, 1]) < 0.2
  assert np.array_equal(prior_lib.open_prior("sd15", **SD15)[0].embed([""])["text"][0], text[1])


def test_the_source_names_random_weights(tiny_published):
  source = prior_lib.open_prior("sd15", **SD15)[0].source
  assert "random weights" in str(source) and "sd15" in str(source)
  assert json.loads(json.dumps(source.as_dict())) == dict(name="sd15", folder="random weights", repo="", revision="")


@pytest.mark.parametrize("name", ["shapeworld", "owner/name", "/tmp"])
def test_only_published_priors(name):
  with pytest.raises(ValueError, match="made for published priors only .sd15, sd21-base, .*, not for '"):
    prior_lib.build(name, random_weights=True)


def test_every_published_name_has_shapes():
  assert set(published.PRIORS) == set(sources.HUB_IDS)


@pytest.mark.parametrize("kind, config, millions", [
  ("unet", stable_diffusion.SD1_UNET, 859.52), ("vae", stable_diffusion.SD_VAE, 83.65),
  *(pytest.param("unet", config, millions, marks=pytest.mark.full_size) for config, millions in (
    (stable_diffusion.SD2_UNET, 865.91), (deepfloyd.IF_M_UNET, 371.61), (deepfloyd.IF_L_UNET, 935.37),
    (deepfloyd.IF_XL_UNET, 4304.70), (zero123.ZERO123_UNET, 859.53))),
  pytest.param("image_encoder", zero123.CLIP_L_VISION, 303.97, marks=pytest.mark.full_size),
  ("cc_projection", zero123.CAMERA_PROJECTION, 0.59)])
def test_published_numbers_of_parameters(kind, config, millions):
  shapes = checkpoint.abstract_params(checkpoint.COMPONENTS[kind].network.from_config(config))
  assert abs(sum(math.prod(leaf.shape) for leaf in shapes.values()) / 1e6 - millions) < 0.01
