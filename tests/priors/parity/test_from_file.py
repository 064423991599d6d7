"""Single files of ours are what diffusers reads as single files, and folders of ours what it reads as folders."""
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors import convert
from sds_jax.priors.base import Options


def same(torch, theirs, folder):
  """Whether the state of a network is that of a folder's file."""
  from safetensors.torch import load_file
  file = next(folder.glob("*.safetensors"))
  stored = {key: value.float() for key, value in load_file(file).items()}
  state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("position_ids")}
  prefix = "" if set(stored) == set(state) else "text_model."
  state = {key if key in stored else prefix + key: value for key, value in state.items()}
  stored = {key if key in state else key.removeprefix(prefix): value for key, value in stored.items()}
  return set(state) == set(stored) and all(torch.equal(state[key].float(), stored[key]) for key in stored)


@pytest.mark.parametrize("kind", ["SD1", "SD2"])
def test_single_files_and_converted_folders(torch, diffusers, transformers, ldm_models, tmp_path, kind):
  folder, tensors = ldm_models[kind]
  save_file(tensors, tmp_path / "model.safetensors")
  convert.convert(str(tmp_path / "model.safetensors"), tmp_path / "out", Options(
    prediction_type="v_prediction" if kind == "SD2" else ""))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
  assert type(pipeline).__name__ == "StableDiffusionPipeline"
  assert same(torch, pipeline.unet, folder / "unet") and same(torch, pipeline.vae, folder / "vae")
  assert same(torch, pipeline.text_encoder, folder / "text_encoder")
  ids = pipeline.tokenizer(["a photo of a cat"], padding="max_length").input_ids[0]
  assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 0 if kind == "SD2" else 49407] and len(ids) == 77
  assert pipeline.scheduler.config.prediction_type == ("v_prediction" if kind == "SD2" else "epsilon")
  assert np.isclose(pipeline.vae.config.scaling_factor, 0.18215)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    single = diffusers.StableDiffusionPipeline.from_single_file(
      str(tmp_path / "model.safetensors"), config=str(tmp_path / "out"), local_files_only=True, safety_checker=None)
  assert same(torch, single.unet, folder / "unet") and same(torch, single.vae, folder / "vae")
  assert same(torch, single.text_encoder, folder / "text_encoder")
