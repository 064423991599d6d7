"""The U-Net of DeepFloyd IF: its configs, its sizes, its inputs; numbers are held against diffusers in parity/."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks import attention, layers
from sds_jax.priors.networks.unet import UNet2DConditionModel


def published(width):
  """config.json of an IF stage I U-Net (IF-I-M: 192, IF-I-L: 320, IF-I-XL: 704), the text as wide as the last block."""
  widths = [width, 2 * width, 3 * width, 4 * width]
  return dict(
    _class_name="UNet2DConditionModel", _diffusers_version="0.16.0.dev0", act_fn="gelu", addition_embed_type="text",
    addition_embed_type_num_heads=64, attention_head_dim=64, block_out_channels=widths,
    center_input_sample=False, class_embed_type=None, class_embeddings_concat=False, conv_in_kernel=3,
    conv_out_kernel=3, cross_attention_dim=widths[-1], cross_attention_norm="group_norm",
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, downsample_padding=1,
    dual_cross_attention=False, encoder_hid_dim=4096, encoder_hid_dim_type="text_proj", flip_sin_to_cos=True,
    freq_shift=0, in_channels=3, layers_per_block=3, mid_block_only_cross_attention=None, mid_block_scale_factor=1,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", norm_eps=1e-05, norm_num_groups=32, num_class_embeds=None,
    only_cross_attention=False, out_channels=6, projection_class_embeddings_input_dim=None, resnet_out_scale_factor=1.0,
    resnet_skip_time_act=False, resnet_time_scale_shift="scale_shift", sample_size=64, time_cond_proj_dim=None,
    time_embedding_act_fn=None, time_embedding_dim=None, time_embedding_type="positional", timestep_post_act=None,
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"], upcast_attention=False,
    use_linear_projection=False)


@pytest.mark.parametrize("width, size", [(192, 371_605_830), (320, 935_365_830), (704, 4_304_695_110)])
def test_published_configs_have_the_published_size(width, size):
  """400M, 900M and 4.3B by the model cards; to the last one by diffusers (parity/test_if_unet.py)."""
  shapes = checkpoint.abstract_params(UNet2DConditionModel.from_config(published(width)))
  assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == size
  assert shapes["encoder_hid_proj", "kernel"].shape == (4096, 4 * width)
  assert shapes["add_embedding", "norm1", "scale"].shape == (4096,)  # of the text before that projection
  assert shapes["conv_out", "kernel"].shape == (3, 3, width, 6)


def test_text_projection_needs_no_type():
  older = {key: value for key, value in published(192).items() if key != "encoder_hid_dim_type"}
  assert UNet2DConditionModel.from_config(older) == UNet2DConditionModel.from_config(published(192))


@pytest.mark.parametrize("key, value, message", [
  ("encoder_hid_dim", None, r"encoder_hid_dim=None is not supported with encoder_hid_dim_type='text_proj'"),
  ("encoder_hid_dim_type", "image_proj", r"encoder_hid_dim_type='image_proj' is not supported; supported: None, 'text"),
  ("cross_attention_norm", "layer_norm", r"cross_attention_norm='layer_norm' is not supported; supported: None, 'grou"),
  ("cross_attention_dim", 700, r"cross_attention_norm='group_norm' is not supported with cross_attention_dim=700"),
  ("attention_head_dim", [64, 64, 32, 64], r"attention_head_dim=\[64, 64, 32, 64\] is not supported with SimpleCross"),
  ("addition_embed_type_num_heads", 60, r"addition_embed_type_num_heads=60 is not supported; .* width 4096"),
  ("mid_block_type", "UNetMidBlock2D", r"mid_block_type='UNetMidBlock2D' is not supported"),
  ("only_cross_attention", True, r"only_cross_attention=True is not supported; supported: False"),
  ("mid_block_only_cross_attention", True, r"mid_block_only_cross_attention=True is not supported; supported: None"),
  ("resnet_skip_time_act", True, r"resnet_skip_time_act=True is not supported; supported: False"),
  ("time_embedding_act_fn", "gelu", r"time_embedding_act_fn='gelu' is not supported; supported: None"),
])
def test_config_is_refused(key, value, message):
  with pytest.raises(ValueError, match="UNet2DConditionModel config: " + message):
    UNet2DConditionModel.from_config({**published(192), key: value})


def test_text_of_another_width_is_refused():
  model = UNet2DConditionModel.from_config(published(192))
  with pytest.raises(ValueError, match=r"encoder_hidden_states has shape \(1, 7, 768\), .* takes \[B, T, 4096\]"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros((1, 7, 768)))


def test_heads_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match="24 channels are not divisible by attention heads of 16"):
    attention.AddedKVAttention(16, 4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 24)), jnp.zeros((1, 3, 5)))


def test_pixels_attend_to_text_and_pixels():
  """Against numpy, one head at a time."""
  rng, block = np.random.default_rng(0), attention.AddedKVAttention(4, groups=2)
  x, text = rng.normal(size=(1, 2, 3, 8)).astype(np.float32), rng.normal(size=(1, 5, 6)).astype(np.float32)
  shapes = jax.eval_shape(block.init, jax.random.key(0), x, text)["params"]
  params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  got = block.apply({"params": params}, jnp.asarray(x), jnp.asarray(text))

  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def linear(name, y):
    return y @ p[name]["kernel"] + p[name]["bias"]

  grouped = x.reshape(6, 2, 4).astype(np.float64)
  mean, var = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
  pixels = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(6, 8) * p["group_norm"]["scale"] + p["group_norm"]["bias"]
  q = linear("to_q", pixels)
  k = np.concatenate([linear("to_k", pixels), linear("add_k_proj", text[0])])
  v = np.concatenate([linear("to_v", pixels), linear("add_v_proj", text[0])])
  heads = []
  for head in (slice(0, 4), slice(4, 8)):
    weights = np.exp(q[:, head] @ k[:, head].T / 2)
    heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
  expected = x + linear("to_out_0", np.concatenate(heads, -1)).reshape(x.shape)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_resampling_of_pixels():
  x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(layers.average_pool(jnp.asarray(x))[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
  np.testing.assert_array_equal(layers.upsample_nearest(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("resample, size", [("down", (2, 3)), ("up", (8, 12)), (None, (4, 6))])
def test_resnet_block_changes_the_resolution(dtype, resample, size):
  block = layers.ResnetBlock2D(8, groups=2, resample=resample, dtype=dtype)
  out = jax.eval_shape(lambda *args: block.init_with_output(jax.random.key(0), *args)[0],
                       jnp.zeros((1, 4, 6, 4), dtype), jnp.zeros((1, 5), dtype))
  assert (out.shape, out.dtype) == ((1, *size, 8), dtype)
