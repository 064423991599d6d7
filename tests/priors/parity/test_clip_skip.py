"""Leaving out layers of CLIP's text encoder, as the pipelines of diffusers do it."""
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint


@pytest.mark.parametrize("skip", [1, 3])
def test_clip_skip(torch, transformers, randomize, relative_error, quick_jit, tmp_path, skip):
  theirs = randomize(torch, transformers.CLIPTextModel(transformers.CLIPTextConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=16, hidden_act="gelu", bos_token_id=97, eos_token_id=98, pad_token_id=98)))
  theirs.save_pretrained(tmp_path)
  ours, params = checkpoint.read_component(tmp_path, "clip_text")
  ids = np.random.default_rng(0).integers(0, 97, (2, 16))
  got = quick_jit(ours.clone(clip_skip=skip).apply, {"params": params}, ids)
  with torch.no_grad():
    states = theirs(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-(skip + 1)]
    expected = getattr(theirs, "text_model", theirs).final_layer_norm(states)
  assert relative_error(got, expected.numpy()) < 1e-5
