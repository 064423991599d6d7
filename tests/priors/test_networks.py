"""Configs, shapes and dtypes of the networks; their numbers are held against diffusers and transformers in parity/."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks import abstract
from sds_jax.priors.networks.clip import CLIPTextModel
from sds_jax.priors.networks.unet import UNet2DConditionModel


@pytest.mark.parametrize("key, value, message", [
  ("addition_embed_type", "image", r"addition_embed_type='image' is not supported; supported: None, 'text', 'tex"),
  ("addition_embed_type", "text_time", r"addition_time_embed_dim=None is not supported with addition_embed_type='t"),
  ("addition_embed_type", "text", r"addition_embed_type_num_heads=64 is not supported; supported: a divisor of"),
  ("act_fn", "mish", r"act_fn='mish' is not supported; supported: 'silu', 'swish', 'gelu', 'relu'"),
  ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"],
   r"down_block_types=\['AttnDownBlock2D', 'DownBlock2D'\] is not supported; supported: 'CrossAttnDownBlock2D', 'Down"),
  ("class_embed_type", "identity", r"class_embed_type='identity' is not supported; supported: None, 'projection'"),
  ("num_class_embeds", 10, r"num_class_embeds=10 is not supported; supported: None"),
  ("only_cross_attention", True, r"only_cross_attention=True is not supported; supported: False"),
  ("resnet_out_scale_factor", 2.0, r"resnet_out_scale_factor=2.0 is not supported; supported: 1.0"),
  ("new_option", 1, r"new_option=1 is not a known option"),
  ("block_out_channels", [8, 16, 32], r"down_block_types=\[.*\] has 2 values, while block_out_channels has 3"),
  ("projection_class_embeddings_input_dim", None, r"projection_class_embeddings_input_dim=None is not supported"),
  ("cross_attention_dim", [12, 24], r"cross_attention_dim=\[12, 24\] is not supported"),
  ("transformer_layers_per_block", [[1], 1], r"transformer_layers_per_block=\[\[1\], 1\] is not supported"),
])
def test_unet_config_is_refused(unet, key, value, message):
  with pytest.raises(ValueError, match="UNet2DConditionModel config: " + message):
    UNet2DConditionModel.from_config({**unet[0], key: value})


@pytest.mark.parametrize("width", [None, 24])
def test_the_added_embedding_has_room_for_the_pooled_text(unet, width):
  with pytest.raises(ValueError, match=f"input_dim={width} is not supported with addition_embed_type='text_time' and "
                                       "addition_time_embed_dim=4; supported: 6 times 4, and the width of the pooled"):
    UNet2DConditionModel.from_config(dict(unet[0], class_embed_type=None, addition_embed_type="text_time",
                                          addition_time_embed_dim=4, projection_class_embeddings_input_dim=width))


def test_unet_config_without_effect_is_accepted(unet):
  harmless = dict(_diffusers_version="0.42", dropout=0.1, mid_block_only_cross_attention=None, attention_type="default")
  assert UNet2DConditionModel.from_config({**unet[0], **harmless}) == unet[1]


def test_fields_that_change_no_parameter(unet, clip):
  """As the tests' fixture `traced_once` has it."""
  trace = abstract._traced_params.__wrapped__
  others = dict(sample_size=9, upcast_attention=True, hidden_act="gelu", dtype=jnp.bfloat16)
  for _, model, _ in (unet, clip):
    changed = model.clone(**{name: value for name, value in others.items() if hasattr(model, name)})
    assert changed != model and trace(changed) == trace(model)


SD1_UNET = dict(
  _class_name="UNet2DConditionModel", attention_head_dim=8, block_out_channels=[320, 640, 1280, 1280],
  cross_attention_dim=768, down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], dropout=0.0, freq_shift=0,
  in_channels=4, layers_per_block=2, out_channels=4, sample_size=64,
  up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
SD2_UNET = SD1_UNET | dict(
  attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True, act_fn="silu",
  center_input_sample=False, downsample_padding=1, dual_cross_attention=False, mid_block_scale_factor=1, norm_eps=1e-5,
  norm_num_groups=32, num_class_embeds=None, only_cross_attention=False)
SD1_TEXT = dict(
  architectures=["CLIPTextModel"], attention_dropout=0.0, bos_token_id=0, dropout=0.0, eos_token_id=2,
  hidden_act="quick_gelu", hidden_size=768, intermediate_size=3072, layer_norm_eps=1e-5, max_position_embeddings=77,
  model_type="clip_text_model", num_attention_heads=12, num_hidden_layers=12, pad_token_id=1, vocab_size=49408)
SD2_TEXT = SD1_TEXT | dict(hidden_act="gelu", hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
                           num_hidden_layers=23, projection_dim=512)


@pytest.mark.parametrize("network, config, published", [
  (UNet2DConditionModel, SD1_UNET, 859_520_964), (UNet2DConditionModel, SD2_UNET, 865_910_724),
  (CLIPTextModel, SD1_TEXT, 123_060_480), (CLIPTextModel, SD2_TEXT, 340_387_840)])
def test_published_configs_have_the_published_size(network, config, published):
  shapes = checkpoint.abstract_params(network.from_config(config)).values()
  assert sum(math.prod(leaf.shape) for leaf in shapes) == published


@pytest.mark.parametrize("change, message", [
  (dict(sample=(1, 4, 4, 4)), r"sample has shape \(1, 4, 4, 4\), the network takes \[B, H, W, 12\]"),
  (dict(sample=(1, 4, 5, 12)), r"sample of 4x5: height and width must be divisible by 2"),
  (dict(text=(1, 3, 8)), r"encoder_hidden_states has shape \(1, 3, 8\), the network takes \[B, T, 12\]"),
  (dict(labels=None), r"class_labels are missing while class_embed_type is 'projection'"),
  (dict(labels=(1, 4)), r"class_labels has shape \(1, 4\), the network takes \[B, 5\]"),
])
def test_unet_inputs_are_checked(unet, change, message):
  shapes = {**dict(sample=(1, 4, 4, 12), text=(1, 3, 12), labels=(1, 5)), **change}
  sample, text, labels = (None if shape is None else jnp.zeros(shape) for shape in shapes.values())
  with pytest.raises(ValueError, match=message):
    unet[1].apply({"params": unet[2]}, sample, jnp.zeros(1, jnp.int32), text, labels)


def test_unet_in_bfloat16_is_near_float32(unet, quick_jit, random_params):
  small = dict(block_out_channels=[8], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"])
  model = UNet2DConditionModel.from_config(unet[0] | small)
  params = random_params(model)
  rng = np.random.default_rng(0)
  sample, text, labels = (jnp.asarray(rng.normal(size=shape), jnp.float32)
                          for shape in ((2, 4, 4, 12), (2, 3, 12), (2, 5)))
  def run(dtype):
    cast = jax.tree.map(lambda a: np.asarray(a).astype(dtype), params)
    return quick_jit(model.clone(dtype=dtype).apply, {"params": cast}, sample, jnp.asarray([1, 40]), text, labels)
  full, half = run(jnp.float32), run(jnp.bfloat16)
  assert (full.dtype, half.dtype, full.shape) == (jnp.float32, jnp.bfloat16, sample.shape)
  error = float(jnp.abs(half.astype(jnp.float32) - full).max() / jnp.abs(full).max())
  assert 1e-4 < error < 0.1  # different (so it did run in bfloat16), but not by much


def test_clip_is_causal(clip, quick_jit):
  _, model, params = clip
  ids = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]])
  before = quick_jit(model.apply, {"params": params}, ids)
  after = quick_jit(model.apply, {"params": params}, ids.at[0, 4].set(7))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert float(jnp.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max()) > 1e-4


@pytest.mark.parametrize("key, value, message", [
  ("hidden_act", "relu", r"hidden_act='relu' is not supported; supported: 'quick_gelu', 'gelu'"),
  ("new_option", 1, r"new_option=1 is not a known option")])
def test_clip_config_is_refused(clip, key, value, message):
  with pytest.raises(ValueError, match="CLIPTextModel config: " + message):
    CLIPTextModel.from_config({**clip[0], key: value})


def test_clip_refuses_long_texts(clip):
  with pytest.raises(ValueError, match="9 tokens, the text encoder takes at most 8"):
    clip[1].apply({"params": clip[2]}, jnp.zeros((1, 9), jnp.int32))
