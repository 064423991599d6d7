"""A recipe of a few thousand parameters, and a data set shared by all runs."""
import pytest

TINY_UNET = dict(block_out_channels=[8], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
                 norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)
"""One level. The text is read by its middle block alone: each further attention lengthens the compilation of a step."""


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """Writes images.npz with 32 examples of seed 0, rendered by the program of tests/shapeworld/test_dataset.py."""
  from sds_jax.shapeworld import dataset
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dataset, "BATCH", 8)
    return dataset.make_dataset(32, 0, tmp_path_factory.mktemp("images") / "images.npz", chunk=32)


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


@pytest.fixture
def tiny_view_recipe(monkeypatch):
  """Shrinks the networks of the recipe of the view prior."""
  from sds_jax.shapeworld import view_recipe
  eye = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
  for config, changes in ((view_recipe.UNET, TINY_UNET), (view_recipe.IMAGE_ENCODER, eye),
                          (view_recipe.PROJECTION, dict(in_features=12, out_features=8)),
                          (view_recipe.ELEVATION_HEAD, dict(in_features=8))):
    for name, value in changes.items():
      monkeypatch.setitem(config, name, value)
