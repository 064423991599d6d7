"""Text encoders at published sizes against transformers, with random weights: `pytest -m full_size`.

Each holds one network of torch and then one of ours, and a folder of the weights; 5 GiB of memory do for the largest.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.families.deepfloyd import T5_XXL
from sds_jax.priors.families.sdxl import OPEN_CLIP_BIG_G
from sds_jax.priors.families.stable_diffusion import CLIP_L, OPEN_CLIP_H
from sds_jax.priors.loading import checkpoint, t5_stream

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]

T5_BASE = T5_XXL | dict(d_model=768, d_ff=2048, num_layers=12, num_heads=12)


def write_random(torch, model, folder):
  """Saves `model` with norms that are not the identity, in shards, and returns it."""
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn(parameter.shape))
  model.eval().save_pretrained(folder, max_shard_size="200MB")
  assert len(list(folder.glob("model-*.safetensors"))) > 1
  return model


@pytest.mark.parametrize("config", [CLIP_L, OPEN_CLIP_H], ids=["CLIP-L", "OpenCLIP-H"])
def test_clip(torch, transformers, figures, tmp_path, config):
  torch.manual_seed(0)
  theirs = write_random(torch, transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)), tmp_path)
  ids = np.full((2, 77), 49407)
  ids[:, 0], ids[0, 1:20] = 49406, np.random.default_rng(0).integers(0, 49406, 19)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
  del theirs
  ours, params = checkpoint.read_component(tmp_path, "clip_text")
  assert figures("float32", jax.jit(ours.apply)({"params": params}, ids), expected) < 1e-4
  for dtype, bound in ((jnp.bfloat16, 2e-2), (jnp.float16, 4e-3)):
    ours, params = checkpoint.read_component(tmp_path, "clip_text", dtype)
    half = jax.jit(ours.apply)({"params": params}, ids)
    assert half.dtype == dtype and figures(dtype.__name__, half, expected) < bound


@pytest.mark.parametrize("config", [CLIP_L, OPEN_CLIP_BIG_G], ids=["CLIP-L", "OpenCLIP-bigG"])
def test_clips_of_sdxl(torch, transformers, figures, tmp_path, config):
  """The penultimate layer without the final norm, and of the second encoder the pooled text."""
  torch.manual_seed(0)
  second = config is OPEN_CLIP_BIG_G
  network = transformers.CLIPTextModelWithProjection if second else transformers.CLIPTextModel
  theirs = write_random(torch, network(transformers.CLIPTextConfig(**config)), tmp_path)
  ids = np.zeros((2, 77), np.int64)
  ids[:, 0], ids[0, 1:20], ids[0, 20], ids[1, 1] = 49406, np.random.default_rng(0).integers(1, 49406, 19), 49407, 49407
  with torch.no_grad():
    out = theirs(torch.from_numpy(ids), output_hidden_states=True)
    expected = [out.hidden_states[-2].numpy(), *([out.text_embeds.numpy()] if second else [])]
  del theirs, out
  kind, fields = ("clip_text_2", {}) if second else ("clip_text", dict(final_norm=False))
  for dtype, bound in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
    ours, params = checkpoint.read_component(tmp_path, kind, dtype, clip_skip=1, **fields)
    got = jax.jit(ours.apply)({"params": params}, ids)
    for name, one, value in zip(("tokens", "pooled"), got if second else (got,), expected):
      assert one.dtype == dtype and figures(f"{dtype.__name__} {name}", one, value) < bound
    del params


def test_t5(torch, transformers, figures, tmp_path):
  torch.manual_seed(0)
  theirs = write_random(torch, transformers.T5EncoderModel(transformers.T5Config(**T5_BASE)), tmp_path)
  rng = np.random.default_rng(0)
  ids, mask = np.zeros((2, 77), np.int64), np.zeros((2, 77), np.int64)
  for row, length in enumerate((77, 12)):
    ids[row, :length], mask[row, :length] = rng.integers(2, 32128, length), 1
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
  del theirs
  for dtype, bound in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2), (jnp.float16, 4e-3)):
    model, read = t5_stream.open_parts(tmp_path, dtype)
    got = t5_stream.encode_in_layers(read, model, jnp.asarray(ids), jnp.asarray(mask))
    assert figures(f"{dtype.__name__} in layers", got, expected) < bound
    ours, params = checkpoint.read_component(tmp_path, "t5", dtype)
    assert figures(dtype.__name__, jax.jit(ours.apply)({"params": params}, ids, mask), expected) < bound
