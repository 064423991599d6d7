"""A prior of a few thousand parameters, and settings with which the benchmark runs in seconds."""
import json

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks.clip import CLIPTextModel
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.shapeworld import captions, recipe, tokenizer

UNET = dict(recipe.UNET, sample_size=4, block_out_channels=[8], down_block_types=["DownBlock2D"],
            up_block_types=["UpBlock2D"], cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4)
INDEX = dict(pixel_unshuffle=4, image_size=16, camera_dim=16, ray_dim=18, vocabulary=sorted(captions.WORDS))


def _random(model, seed):
  """Returns parameters that all have an effect: no zero biases, no unit scales."""
  rng = np.random.default_rng(seed)
  draw = lambda path, leaf: (path[-1] == "scale") + rng.normal(size=leaf.shape) / np.sqrt(leaf.size)**0.5  # noqa: E731
  return flax.traverse_util.unflatten_dict({
    path: jnp.asarray(draw(path, leaf), jnp.float32) for path, leaf in checkpoint.abstract_params(model).items()})


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
  """A prior of 16x16 images in patches of 4x4: v-prediction, camera features, ShapeWorld's vocabulary."""
  folder = tmp_path_factory.mktemp("prior")
  tokenizer.write_tokenizer(folder / "tokenizer")
  clip = dict(recipe.TEXT_ENCODER, hidden_size=8, intermediate_size=16, num_attention_heads=2,
              vocab_size=len(tokenizer.build_vocabulary()[0]), **tokenizer.special_ids(folder / "tokenizer"))
  for name, kind, config, network in (("unet", "unet", UNET, UNet2DConditionModel),
                                      ("text_encoder", "clip_text", clip, CLIPTextModel)):
    checkpoint.write_component(folder / name, kind, config, _random(network.from_config(config), seed=len(name)))
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(recipe.SCHEDULER))
  (folder / "model_index.json").write_text(json.dumps(INDEX))
  return folder


TINY = {"render.height": 16, "render.width": 16, "render.num_samples": 8, "render.candidates": 16,
        "render.block_points": 1024, "field.mlp.hidden": 8, "occupancy.resolution": 8, "occupancy.every": 2,
        "occupancy.start_step": 1, "training.steps": 20, "training.views": 2, "optimizer.warmup_steps": 2}


@pytest.fixture
def tiny_changes():
  """The changes of the tiny settings, {dotted name: value}."""
  return TINY


@pytest.fixture
def tiny(prior_folder):
  """(changes, {dotted name: value}) -> the validated default settings made small, with these changes."""
  def make(changes=None):
    config = settings_lib.defaults()
    config.update_from_flattened_dict(TINY | {"prior.path": str(prior_folder)} | (changes or {}))
    return settings_lib.validate(config)
  return make
