"""The U-Net of DeepFloyd IF against diffusers, by way of the folders: theirs read by us, ours read by them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.networks.unet import UNet2DConditionModel

BASE = dict(sample_size=8, in_channels=3, out_channels=6, mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], block_out_channels=[16, 32],
            layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8, act_fn="gelu",
            resnet_time_scale_shift="scale_shift")
TEXT = dict(encoder_hid_dim=20, addition_embed_type="text", addition_embed_type_num_heads=5,
            cross_attention_norm="group_norm")
CONFIGS = {
  "published": TEXT | dict(layers_per_block=[1, 2], cross_attention_dim=64),
  "no_text_projection": dict(cross_attention_dim=20, attention_head_dim=16, norm_eps=1e-2),
  "attention_everywhere": TEXT | dict(
    down_block_types=["SimpleCrossAttnDownBlock2D"] * 2, up_block_types=["SimpleCrossAttnUpBlock2D"] * 2,
    layers_per_block=[1, 3], attention_head_dim=4, mid_block_scale_factor=1.4, act_fn="silu",
    resnet_time_scale_shift="default"),
  "mixed_with_transformers": TEXT | dict(  # 4 is the number of heads in one kind of block and their width in the other
    down_block_types=["CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"], mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"], attention_head_dim=4),
}


def draw(ours):
  rng = np.random.default_rng(0)
  sample, text = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 8, 3), (2, 6, ours.text_dim)))
  return sample, np.array([3, 977]), text


@pytest.mark.parametrize("name", CONFIGS)
def test_unet(torch, diffusers, randomize, relative_error, quick_jit, tmp_path, name):
  theirs = randomize(torch, diffusers.UNet2DConditionModel(**{**BASE, **CONFIGS[name]}))
  theirs.save_pretrained(tmp_path / "theirs")
  ours, params = checkpoint.read_component(tmp_path / "theirs", "unet")

  sample, t, text = draw(ours)
  got = quick_jit(ours.apply, {"params": params}, sample, t, text)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(sample.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t),
                      torch.from_numpy(text)).sample.numpy().transpose(0, 2, 3, 1)
  assert relative_error(got, expected) < 1e-5

  checkpoint.write_component(tmp_path / "ours", "unet", dict(theirs.config), params, dtype=jnp.float32)
  reopened = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", use_safetensors=True).state_dict()
  state = theirs.state_dict()
  assert set(reopened) == set(state)
  assert all(torch.equal(reopened[key], state[key]) for key in state)


def test_bfloat16_is_near_float32(torch, diffusers, relative_error, quick_jit, tmp_path):
  torch.manual_seed(0)
  one_block = dict(block_out_channels=[32], down_block_types=["SimpleCrossAttnDownBlock2D"],
                   up_block_types=["SimpleCrossAttnUpBlock2D"])
  diffusers.UNet2DConditionModel(**{**BASE, **TEXT, **one_block}).save_pretrained(tmp_path)
  full, params = checkpoint.read_component(tmp_path, "unet")
  half, half_params = checkpoint.read_component(tmp_path, "unet", jnp.bfloat16)
  inputs = draw(full)
  expected = quick_jit(full.apply, {"params": params}, *inputs)
  got = quick_jit(half.apply, {"params": half_params}, *inputs)
  assert got.dtype == jnp.bfloat16
  assert 1e-4 < relative_error(got.astype(jnp.float32), expected) < 2e-2


@pytest.mark.parametrize("width", [192, 320, 704])
def test_published_sizes(torch, diffusers, width):
  """All names and shapes of IF-I-M, -L and -XL, without memory for a single weight."""
  widths = [width, 2 * width, 3 * width, 4 * width]
  config = {**BASE, **TEXT, **dict(
    sample_size=64, block_out_channels=widths, cross_attention_dim=widths[-1], layers_per_block=3, norm_num_groups=32,
    attention_head_dim=64, encoder_hid_dim=4096, addition_embed_type_num_heads=64,
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"])}
  with torch.device("meta"):
    state = diffusers.UNet2DConditionModel(**config).state_dict()
  ours = checkpoint.abstract_params(UNet2DConditionModel.from_config(config))
  assert {name: names.checkpoint_shape(path, ours[path].shape)
          for name, path in names.flax_paths(ours, names.UNET).items()} == {
            name: tuple(value.shape) for name, value in state.items()}
  assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == {192: 371_605_830, 320: 935_365_830,
                                                              704: 4_304_695_110}[width]
