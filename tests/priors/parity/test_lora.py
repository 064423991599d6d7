"""Merged weights against diffusers' `load_lora_weights` and `fuse_lora`, for each way of naming the layers."""
import re
import warnings

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading import names
from sds_jax.priors.loading.additions import read_additions
from sds_jax.priors.loading.checkpoint import COMPONENTS, load, open_component
from sds_jax.priors.loading.lora_names import ldm_names

PARTS = {"unet": ("unet", "diffusion_pytorch_model"), "text_encoder": ("clip_text", "model")}
"""Network in LoRA files and folder -> (its kind, stem of its weights)."""
XL_PARTS = PARTS | {"text_encoder_2": ("clip_text_2", "model")}


@pytest.fixture(scope="module")
def peft(torch):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("peft", reason="peft is not installed; pip install 'sds_jax[parity]'")


def kohya(network, module, part):
  prefix = dict(unet="lora_unet", text_encoder="lora_te")[network]
  return f"{prefix}_{module.replace('.', '_')}.lora_{part}.weight"


def processors(network, module, part):
  if network == "unet":
    return f"unet.{module.replace('.to_', '.processor.to_').replace('to_out.0', 'to_out')}_lora.{part}.weight"
  return f"text_encoder.{module}.lora_linear_layer.{part}.weight"


def peft_name(network, module, part):
  return f"{network}.{module}.lora_{dict(down='A', up='B')[part]}.weight"


# What each writer trains: kohya's LoCons also the convolutions of residual blocks.
TEXT_LAYERS = r"(q|k|v|out)_proj|mlp\.fc"
STYLES = {
  "kohya": (kohya, rf"attn\d\.to_|proj|ff\.net|resnets.*(conv|time_emb)|samplers|{TEXT_LAYERS}"),
  "processors": (processors, r"attn\d\.to_|(q|k|v|out)_proj"),
  "peft": (peft_name, rf"attn\d\.to_|proj_|ff\.net|conv1|{TEXT_LAYERS}")}


def weights_of(folder, parts):
  """{(network, module): weight} of the linear and convolutional layers in a folder"""
  return {(network, key.removesuffix(".weight")): weight for network, (_, stem) in parts.items()
          for key, weight in load_file(folder / network / f"{stem}.safetensors").items()
          if key.endswith(".weight") and weight.ndim in (2, 4) and "embedding." not in key}


def write(path, folder, parts, name, trained, rank=3):
  """A file of random layers of all modules whose names match, with an alpha of 2 where kohya's names are used.

  One alpha for all layers, since diffusers loses alphas that differ.
  """
  rng, tensors = np.random.default_rng(0), {}
  for (network, module), weight in weights_of(folder, parts).items():
    if not re.search(trained, module):
      continue
    down, up, kernel = name(network, module, "down"), name(network, module, "up"), weight.shape[2:]
    tensors[down] = rng.normal(size=(rank, weight.shape[1], *kernel))
    tensors[up] = rng.normal(size=(len(weight), rank, *(1 for _ in kernel)))
    if "lora_down" in down:
      tensors[down.replace("lora_down.weight", "alpha")] = np.array(2)
  save_file({key: value.astype(np.float32) for key, value in tensors.items()}, path)
  assert len(tensors) > 60
  return path


@pytest.fixture(scope="module")
def lora_files(sd_folder, tmp_path_factory):
  """{style: file} of random LoRAs."""
  folder = tmp_path_factory.mktemp("lora")
  return {style: write(folder / f"{style}.safetensors", sd_folder, PARTS, name, trained)
          for style, (name, trained) in STYLES.items()}


def ours(folder, lora, parts=PARTS):
  """{network: {name in the checkpoint: weight}} of a prior with LoRAs"""
  additions, weights = read_additions(lora), {}
  for network, (kind, _) in parts.items():
    model, places = open_component(folder / network, kind)
    table = COMPONENTS[kind].table
    flat = traverse_util.flatten_dict(load(additions.merged(network, model, places, table), np.float32))
    weights[network] = {names.checkpoint_name(path, table): names.to_checkpoint(path, value)
                        for path, value in flat.items()}
  return weights


def theirs(pipeline, folder, lora, parts=PARTS, **options):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pipe = pipeline.from_pretrained(folder, **options)
    for path, scale in lora:
      pipe.load_lora_weights(path)
      pipe.fuse_lora(lora_scale=scale)
      pipe.unload_lora_weights()
  return {network: {key: value.numpy() for key, value in getattr(pipe, network).state_dict().items()}
          for network in parts}


def compare(got, expected, plain):
  for network, weights in got.items():
    changed = 0
    for name, value in weights.items():
      key = name if name in expected[network] else name.removeprefix("text_model.")
      np.testing.assert_allclose(value, expected[network][key], rtol=1e-5, atol=2e-5, err_msg=name)
      changed += not np.array_equal(value, plain[network][name])
    assert changed >= 8, network


@pytest.mark.parametrize("chosen", [[("kohya", 0.7)], [("processors", -1.5)], [("peft", 0.25), ("kohya", 2.)]])
def test_merged_weights(chosen, diffusers, transformers, peft, sd_folder, lora_files):
  lora = [(str(lora_files[style]), scale) for style, scale in chosen]
  expected = theirs(diffusers.StableDiffusionPipeline, sd_folder, lora, safety_checker=None)
  compare(ours(sd_folder, lora), expected, ours(sd_folder, ()))


def test_merged_weights_of_xl(diffusers, transformers, peft, sdxl_folder, tmp_path):
  """kohya's names of latent diffusion's modules, and two text encoders."""
  modules = ldm_names([module for network, module in weights_of(sdxl_folder, XL_PARTS) if network == "unet"])

  def name(network, module, part):
    prefix = dict(unet="lora_unet", text_encoder="lora_te1", text_encoder_2="lora_te2")[network]
    return f"{prefix}_{modules.get(module, module).replace('.', '_')}.lora_{part}.weight"

  path = write(tmp_path / "xl.safetensors", sdxl_folder, XL_PARTS, name,
               rf"attn\d\.to_|proj_(in|out)|ff\.net|resnets.*(conv|time_emb)|samplers|{TEXT_LAYERS}")
  assert any("lora_unet_input_blocks" in key for key in load_file(path))
  lora = [(str(path), 0.7)]
  expected = theirs(diffusers.StableDiffusionXLPipeline, sdxl_folder, lora, XL_PARTS, add_watermarker=False)
  compare(ours(sdxl_folder, lora, XL_PARTS), expected, ours(sdxl_folder, (), XL_PARTS))


def test_embeddings_and_weights_of_a_prior(torch, diffusers, transformers, peft, sd_folder, lora_files, tmp_path,
                                           monkeypatch):
  """The whole way: the keyword of `build`, and the prompt's embedding by the merged text encoder."""
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path))
  prior, params = prior_lib.build(sd_folder, lora=f"{lora_files['kohya']}:0.05")
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    pipe.load_lora_weights(lora_files["kohya"])
    pipe.fuse_lora(lora_scale=0.05)
    expected, _ = pipe.encode_prompt(["a red cube"], "cpu", 1, False)
  got = prior.embed(["a red cube"])["text"]
  assert np.linalg.norm(got - expected.numpy()) < 1e-5 * np.linalg.norm(expected.numpy())
  key = next(key for key in pipe.unet.state_dict() if key.endswith("mid_block.attentions.0.proj_in.weight")
             or key.endswith("mid_block.attentions.0.proj_in.base_layer.weight"))
  kernel = np.asarray(params["unet"]["mid_block"]["attentions_0"]["proj_in"]["kernel"])
  np.testing.assert_allclose(kernel.transpose(3, 2, 0, 1), pipe.unet.state_dict()[key].numpy(), rtol=1e-5, atol=1e-5)
