"""New tokens against diffusers' `load_textual_inversion`: the ids and the embeddings of prompts."""
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors import prior as prior_lib

PROMPTS = ["a <thing> cube", "<bad>, a cube", "red<thing> <bad> cone", "a red cone"]


def test_prompts_with_new_tokens(torch, diffusers, transformers, sd_folder, tmp_path, monkeypatch):
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path))
  rng = np.random.default_rng(0)
  one, three, archive = tmp_path / "learned_embeds.safetensors", tmp_path / "<bad>.safetensors", tmp_path / "<bad>.pt"
  vectors = rng.normal(size=(3, 12)).astype(np.float32)
  save_file({"<thing>": rng.normal(size=12).astype(np.float32)}, one)
  save_file({"emb_params": vectors}, three)
  # As web UIs write it.
  torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.from_numpy(vectors)}, "name": "other",
              "step": 500, "sd_checkpoint": None}, archive)
  prior, _ = prior_lib.open_prior(sd_folder, embeddings=f"{one}, {three}")
  with pytest.warns(UserWarning, match="a pickle, of which only the tensors are read"):
    same, _ = prior_lib.open_prior(sd_folder, embeddings=f"{one}, {archive}")
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    pipe.load_textual_inversion(str(one))
    pipe.load_textual_inversion(str(three), token="<bad>")
    expected = [pipe.encode_prompt([prompt], "cpu", 1, False)[0].numpy() for prompt in PROMPTS]
  for prompt, want in zip(PROMPTS, expected):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # a prompt that is cut
      got = prior.embed([prompt])["text"]
      np.testing.assert_array_equal(same.embed([prompt])["text"], got)
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want), prompt
