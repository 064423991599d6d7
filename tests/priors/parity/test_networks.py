"""Whole networks against diffusers and transformers, by way of the folders: theirs read by us, ours read by them."""
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint

BASE = dict(sample_size=8, in_channels=5, out_channels=3, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], block_out_channels=[16, 32], layers_per_block=1,
            norm_num_groups=8, cross_attention_dim=20)
CONFIGS = {
  "sd1": dict(layers_per_block=2, attention_head_dim=4),
  "sd2": dict(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True,
              transformer_layers_per_block=[2, 1], layers_per_block=[1, 2], dual_cross_attention=False,
              norm_eps=1e-4),
  "camera": dict(attention_head_dim=4, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
                 up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], class_embed_type="projection",
                 projection_class_embeddings_input_dim=7, downsample_padding=0, mid_block_scale_factor=1.4),
  "scale_shift": dict(attention_head_dim=2, class_embed_type="simple_projection", act_fn="gelu", freq_shift=1,
                      projection_class_embeddings_input_dim=7, resnet_time_scale_shift="scale_shift",
                      flip_sin_to_cos=False, center_input_sample=True),
  "text_vector": dict(attention_head_dim=2, addition_embed_type="text", addition_embed_type_num_heads=5),
  "time_class": dict(attention_head_dim=2, class_embed_type="timestep", conv_in_kernel=1, conv_out_kernel=5),
}


def assert_same_state(torch, a, b):
  a, b = a.state_dict(), b.state_dict()
  assert set(a) == set(b)
  assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CONFIGS)
def test_unet(torch, diffusers, randomize, relative_error, quick_jit, tmp_path, name):
  theirs = randomize(torch, diffusers.UNet2DConditionModel(**{**BASE, **CONFIGS[name]}))
  theirs.save_pretrained(tmp_path / "theirs")
  ours, params = checkpoint.read_component(tmp_path / "theirs", "unet")

  rng = np.random.default_rng(0)
  sample, text = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 8, 5), (2, 6, 20)))
  t = np.array([3, 977])
  labels = {None: None, "timestep": np.array([1., 5.], np.float32)}.get(
    ours.class_embed_type, rng.normal(size=(2, 7)).astype(np.float32))
  got = quick_jit(ours.apply, {"params": params}, sample, t, text, labels)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(sample.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t),
                      torch.from_numpy(text), class_labels=None if labels is None else torch.from_numpy(labels)).sample
  assert relative_error(got, expected.numpy().transpose(0, 2, 3, 1)) < 1e-5

  checkpoint.write_component(tmp_path / "ours", "unet", dict(theirs.config), params, dtype=jnp.float32)
  reopened = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", use_safetensors=True)
  assert_same_state(torch, reopened, theirs)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_clip(torch, transformers, randomize, relative_error, quick_jit, tmp_path, hidden_act):
  config = transformers.CLIPTextConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=16, hidden_act=hidden_act, bos_token_id=97, eos_token_id=98, pad_token_id=98)
  theirs = randomize(torch, transformers.CLIPTextModel(config))
  theirs.save_pretrained(tmp_path / "theirs")
  ours, params = checkpoint.read_component(tmp_path / "theirs", "clip_text")

  ids = np.random.default_rng(0).integers(0, 97, (3, 16))
  ids[:, 0], ids[:, -1], ids[0, 5:] = 97, 98, 98
  got = quick_jit(ours.apply, {"params": params}, ids)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids)).last_hidden_state
  assert relative_error(got, expected.numpy()) < 1e-5

  checkpoint.write_component(tmp_path / "ours", "clip_text", config.to_dict(), params, dtype=jnp.float32)
  reopened, report = transformers.CLIPTextModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  assert_same_state(torch, reopened, theirs)
