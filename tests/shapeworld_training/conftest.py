"""Recipes of a few thousand parameters, and data in the form of the data sets, which tests/shapeworld renders."""
import numpy as np
import optax
import pytest

TINY_UNET = dict(block_out_channels=[8], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
                 norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)
"""One level. The text is read by its middle block alone: each further attention lengthens the compilation of a step."""


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """Writes images.npz with the captions of 32 examples of seed 0; images and cameras are noise."""
  from sds_jax.shapeworld import captions, dataset
  rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("images") / "images.npz"
  texts = [captions.caption(dataset._sample_text(0, index)[0]) for index in range(32)]
  np.savez(path, images=rng.integers(0, 256, (32, 64, 64, 3), np.uint8), captions=np.array(texts),
           cameras=rng.normal(size=(32, 16)).astype(np.float32))
  return path


@pytest.fixture
def flat_optimizer(monkeypatch):
  """The optimiser sees all parameters as one vector: the same numbers, and one update to compile."""
  from sds_jax.shapeworld import fitting
  make = fitting.make_optimizer
  monkeypatch.setattr(fitting, "make_optimizer", lambda *args: optax.flatten(make(*args)))


@pytest.fixture
def tiny_recipe(monkeypatch):
  """Shrinks the networks of the recipe; data, schedule and patches stay the same."""
  from sds_jax.shapeworld import recipe
  text = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
  for name, value in TINY_UNET.items():
    monkeypatch.setitem(recipe.UNET, name, value)
  for name, value in text.items():
    monkeypatch.setitem(recipe.TEXT_ENCODER, name, value)
  return recipe


@pytest.fixture(scope="module")
def tiny_view_recipe():
  """Shrinks the networks of the recipe of the view prior."""
  from sds_jax.shapeworld import view_recipe
  eye = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
  with pytest.MonkeyPatch.context() as patch:
    for config, changes in ((view_recipe.UNET, TINY_UNET), (view_recipe.IMAGE_ENCODER, eye),
                            (view_recipe.PROJECTION, dict(in_features=12, out_features=8)),
                            (view_recipe.ELEVATION_HEAD, dict(in_features=8))):
      for name, value in changes.items():
        patch.setitem(config, name, value)
    yield
