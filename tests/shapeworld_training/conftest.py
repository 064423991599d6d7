"""A recipe of a few thousand parameters, and a data set shared by all runs."""
import pytest


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """Writes images.npz with 64 examples of seed 0."""
  from sds_jax.shapeworld import dataset
  return dataset.make_dataset(64, 0, tmp_path_factory.mktemp("images") / "images.npz", chunk=64)


@pytest.fixture
def tiny_recipe(monkeypatch):
  """Shrinks the networks of the recipe; data, schedule and patches stay the same."""
  from sds_jax.shapeworld import recipe
  unet = dict(block_out_channels=[8], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
              norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)
  text = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
  for name, value in unet.items():
    monkeypatch.setitem(recipe.UNET, name, value)
  for name, value in text.items():
    monkeypatch.setitem(recipe.TEXT_ENCODER, name, value)
  return recipe
