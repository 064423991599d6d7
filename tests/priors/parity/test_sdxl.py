"""The networks of Stable Diffusion XL at small widths against diffusers and transformers, by way of their folders."""
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint

UNET = dict(  # two resolutions, the first without attention, as the published network's three
  sample_size=8, in_channels=4, out_channels=4, block_out_channels=[16, 32], layers_per_block=1, norm_num_groups=8,
  down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], cross_attention_dim=20,
  up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], attention_head_dim=[2, 4],
  transformer_layers_per_block=[1, 2], use_linear_projection=True, addition_embed_type="text_time",
  addition_time_embed_dim=8, projection_class_embeddings_input_dim=10 + 6 * 8)
CLIP = dict(
  vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
  max_position_embeddings=16, hidden_act="gelu", bos_token_id=97, projection_dim=24)


def test_unet(torch, diffusers, randomize, relative_error, quick_jit, tmp_path):
  theirs = randomize(torch, diffusers.UNet2DConditionModel(**UNET))
  theirs.save_pretrained(tmp_path / "theirs")
  ours, params = checkpoint.read_component(tmp_path / "theirs", "unet")
  rng = np.random.default_rng(0)
  sample, text, pooled = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 8, 4), (2, 6, 20), (2, 10)))
  t = np.array([3, 977, 977])
  # The last two differ in the sizes alone.
  sample, text, pooled = (np.concatenate([array, array[1:]]) for array in (sample, text, pooled))
  sizes = np.array([[1024, 512, 0, 8, 1024, 1024], [512, 512, 16, 0, 512, 640], [256, 512, 16, 0, 512, 640]],
                   np.float32)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(sample.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t),
                      torch.from_numpy(text), added_cond_kwargs=dict(
                        text_embeds=torch.from_numpy(pooled), time_ids=torch.from_numpy(sizes)))
  expected = expected.sample.numpy().transpose(0, 2, 3, 1)
  got = quick_jit(ours.apply, {"params": params}, sample, t, text, None, pooled, sizes)
  assert relative_error(got, expected) < 1e-5
  rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
  half = quick_jit(ours.clone(dtype=jnp.bfloat16).apply, {"params": rounded}, sample, t, text, None, pooled, sizes)
  with torch.no_grad():
    tensors = [torch.from_numpy(array).bfloat16() for array in (sample.transpose(0, 3, 1, 2).copy(), text, pooled)]
    rounded = copy.deepcopy(theirs).bfloat16()(tensors[0], torch.from_numpy(t), tensors[1], added_cond_kwargs=dict(
      text_embeds=tensors[2], time_ids=torch.from_numpy(sizes))).sample.float().numpy().transpose(0, 2, 3, 1)
  ours_off, theirs_off = (np.linalg.norm(np.asarray(array, np.float32) - expected) / np.linalg.norm(expected)
                          for array in (half, rounded))
  # At such widths the error of bfloat16 depends on the weights drawn, hence the error of PyTorch's own.
  assert ours_off < max(2e-2, 1.5 * theirs_off) < 6e-2, (ours_off, theirs_off)
  assert np.linalg.norm(got[2] - got[1]) > 1e-3 * np.linalg.norm(got[1])

  checkpoint.write_component(tmp_path / "ours", "unet", dict(theirs.config), params, dtype=jnp.float32)
  reopened = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", use_safetensors=True)
  a, b = reopened.state_dict(), theirs.state_dict()
  assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def ids():
  """[3, 16]: a text of the largest length, and two short ones, padded with 0 after the end 98."""
  ids = np.random.default_rng(0).integers(1, 97, (3, 16))
  ids[:, 0], ids[0, -1], ids[1, 5], ids[1, 6:], ids[2, 9], ids[2, 10:] = 97, 98, 98, 0, 98, 0
  return ids


@pytest.mark.parametrize("end", [2, 98])
def test_second_text_encoder(torch, transformers, randomize, relative_error, quick_jit, tmp_path, ids, end):
  """Published configs say 2 for the end of a text, and mean the largest id; later ones name the end's own id."""
  config = dict(CLIP, vocab_size=101) if end == 98 else CLIP
  if end == 98:  # an added token in the middle has a larger id than the end, and the end's first place counts
    ids = ids.copy()
    ids[2, 3], ids[1, 6:] = 100, 98
  theirs = randomize(torch, transformers.CLIPTextModelWithProjection(
    transformers.CLIPTextConfig(**config, eos_token_id=end, pad_token_id=0)))
  theirs.save_pretrained(tmp_path / "theirs")
  ours, params = checkpoint.read_component(tmp_path / "theirs", "clip_text_2", clip_skip=1)
  with torch.no_grad():
    out = theirs(torch.from_numpy(ids), output_hidden_states=True)
  state, pooled = quick_jit(ours.apply, {"params": params}, ids)
  assert relative_error(state, out.hidden_states[-2].numpy()) < 1e-5
  assert relative_error(pooled, out.text_embeds.numpy()) < 1e-5

  checkpoint.write_component(tmp_path / "ours", "clip_text_2", theirs.config.to_dict(), params, dtype=jnp.float32)
  reopened, report = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "ours",
                                                                              output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  a, b = reopened.state_dict(), theirs.state_dict()
  assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_first_text_encoder(torch, transformers, randomize, relative_error, quick_jit, tmp_path, ids):
  theirs = randomize(torch, transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP, eos_token_id=2)))
  theirs.save_pretrained(tmp_path)
  ours, params = checkpoint.read_component(tmp_path, "clip_text", clip_skip=1, final_norm=False)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-2].numpy()
  assert relative_error(quick_jit(ours.apply, {"params": params}, ids), expected) < 1e-5
