"""Folders with the real configuration files of published models: all options as published, only sizes are smaller.

Weights are zeros under the names and in the variants that published repositories have. `published/*/SOURCE` names where
the configurations are from.
"""
import functools
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tokenizers
from tokenizers import models, pre_tokenizers

from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.priors import published, prior as prior_lib
from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.loading.tokenizers import load_tokenizer

PUBLISHED = Path(__file__).parent / "published"
STABLE_DIFFUSION = ["sd14", "sd15", "sd21-base", "sd21", "realistic-vision", "sd-sample-size-32"]
SMALL = dict(  # component -> the widths and depths that replace the published ones
  unet=dict(block_out_channels=[32, 32, 64, 64], attention_head_dim=4, cross_attention_dim=24, layers_per_block=1),
  vae=dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1),
  clip_text=dict(hidden_size=24, intermediate_size=32, num_attention_heads=4, num_hidden_layers=2),
  image_encoder=dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2))
XL_UNET = dict(block_out_channels=[32, 32, 64], attention_head_dim=[2, 2, 4], transformer_layers_per_block=[1, 1, 2],
               cross_attention_dim=48, projection_class_embeddings_input_dim=16 + 6 * 256, layers_per_block=1)
IF_UNET = dict(block_out_channels=[32, 64, 96, 128], attention_head_dim=32, cross_attention_dim=128, encoder_hid_dim=64,
               layers_per_block=1)
T5 = dict(d_model=64, d_ff=96, d_kv=16, num_heads=4, num_layers=2, vocab_size=8)
FOLDER_OF = {"clip_text": "text_encoder", "t5": "text_encoder"}


def config(model, file):
  return json.loads((PUBLISHED / model / file).read_text(encoding="utf-8"))


@functools.cache
def tensors(kind, text):
  """{name in the checkpoint: zeros, float16} of a component with the config.json `text`."""
  part = checkpoint.COMPONENTS[kind]
  paths = names.flax_paths(shapes := checkpoint.abstract_params(part.network.from_config(json.loads(text))), part.table)
  return {name: np.zeros(names.checkpoint_shape(path, shapes[path].shape), np.float16) for name, path in paths.items()}


def write_network(folder, kind, values, name=None):
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(values)
  (folder / "config.json").write_text(text)
  save_file(tensors(kind, text), folder / (name or f"{checkpoint.COMPONENTS[kind].stem}.safetensors"))


def copy_small_files(model, folder):
  shutil.copy(PUBLISHED / model / "model_index.json", folder)
  (folder / "scheduler").mkdir()
  shutil.copy(PUBLISHED / model / "scheduler" / "scheduler_config.json", folder / "scheduler")


@pytest.fixture
def write(tmp_path, write_tokenizer):
  """(name of a model, widths of its U-Net) -> its folder, made of its real files."""
  def make(model, unet=SMALL["unet"]):
    folder = tmp_path / model
    folder.mkdir()
    copy_small_files(model, folder)
    write_network(folder / "unet", "unet", config(model, "unet/config.json") | unet)
    write_network(folder / "vae", "vae", config(model, "vae/config.json") | SMALL["vae"])
    write_tokenizer(folder / "tokenizer")
    for path in (PUBLISHED / model / "tokenizer").iterdir():
      shutil.copy(path, folder / "tokenizer")
    size = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    write_network(folder / "text_encoder", "clip_text",
                  config(model, "text_encoder/config.json") | SMALL["clip_text"] | dict(vocab_size=size))
    return folder

  return make


@pytest.mark.parametrize("model", STABLE_DIFFUSION)
def test_stable_diffusion(write, model):
  folder = write(model)
  prior, weights = prior_lib.open_prior(folder, jnp.float16)
  size = 768 if model == "sd21" else 512
  assert (prior.image_size, prior.x_shape) == (size, (size // 8, size // 8, 4))
  assert prior.prediction_type == ("v_prediction" if model == "sd21" else "epsilon")
  assert float(jnp.abs(prior.schedule.alpha - schedule_from_config(published.PRIORS["sd15"]["scheduler"]).alpha).max()
               ) == 0.0
  assert weights.networks["vae"].scaling_factor == 0.18215
  # Only the folder whose sample_size is an old conversion's says more than its files.
  assert len(prior.notes) == (model == "sd-sample-size-32")
  tokenizer = load_tokenizer(folder / "tokenizer")
  vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
  assert tokenizer.pad == vocabulary["!" if model.startswith("sd21") else "<|endoftext|>"] and tokenizer.length == 77


def test_deepfloyd(tmp_path):
  model = "if-i-xl"
  copy_small_files(model, tmp_path)
  write_network(tmp_path / "unet", "unet", config(model, "unet/config.json") | IF_UNET)
  write_network(tmp_path / "text_encoder", "t5", config(model, "text_encoder/config.json") | T5)
  (tmp_path / "tokenizer").mkdir()
  pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581red", "\u2581cube", "s"]
  backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0 - i) for i, piece in enumerate(pieces)], unk_id=2))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
  prior, weights = prior_lib.open_prior(tmp_path, jnp.float16)
  assert (prior.image_size, prior.x_shape, prior.notes) == (64, (64, 64, 3), ())
  assert weights.networks["unet"].out_channels == 6 and prior.prediction_type == "epsilon"


def test_stable_diffusion_xl(write):
  folder, model = write("sdxl-base", unet=XL_UNET), "sdxl-base"
  shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
  for path in (PUBLISHED / model / "tokenizer_2").iterdir():
    shutil.copy(path, folder / "tokenizer_2")
  size = len(json.loads((folder / "tokenizer_2" / "vocab.json").read_text()))
  write_network(folder / "text_encoder_2", "clip_text_2", config(model, "text_encoder_2/config.json")
                | SMALL["clip_text"] | dict(vocab_size=size, projection_dim=16))
  prior, weights = prior_lib.open_prior(folder, jnp.bfloat16)
  assert (prior.image_size, prior.x_shape, prior.notes) == (1024, (128, 128, 4), ())
  assert prior.time_ids == (1024, 1024, 0, 0, 1024, 1024) and weights.networks["vae"].scaling_factor == 0.13025
  np.testing.assert_array_equal(prior.schedule.alpha,
                                schedule_from_config(published.PRIORS["sdxl"]["scheduler"]).alpha)
  first, second = (load_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2"))
  assert first.pad == first.eos and second.pad == second.backend.token_to_id("!") != second.eos


def test_zero123(tmp_path):
  """Projection and scheduler are the published files; the other networks are those of Stable Diffusion 1.4."""
  sd, zero = "sd14", "zero123-xl"
  shutil.copytree(PUBLISHED / zero / "scheduler", tmp_path / "scheduler")
  unet = config(sd, "unet/config.json") | SMALL["unet"] | dict(in_channels=8, sample_size=32, cross_attention_dim=768)
  write_network(tmp_path / "unet", "unet", unet)
  write_network(tmp_path / "vae", "vae", config(sd, "vae/config.json") | SMALL["vae"] | dict(sample_size=256))
  write_network(tmp_path / "image_encoder", "image_encoder", published.PRIORS["zero123"]["image_encoder"] | dict(
    architectures=["CLIPVisionModelWithProjection"], model_type="clip_vision_model") | SMALL["image_encoder"])
  projection = "clip_camera_projection"
  write_network(tmp_path / projection, "cc_projection", config(zero, f"{projection}/config.json"))
  (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Zero123Pipeline"}))
  prior, _ = prior_lib.open_prior(tmp_path, jnp.float16)
  assert (prior.image_size, prior.x_shape, prior.notes) == (256, (32, 32, 4), ())  # here 32 is meant
  assert prior.photo is not None


VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rename(folder, old, new):
  shutil.move(folder / old, folder / new)


def shard(folder, stem, variant, index):
  """Two shards and their index in place of the one file."""
  whole = load_file(folder / f"{stem}.safetensors")
  (folder / f"{stem}.safetensors").unlink()
  part = f".{variant}" if variant else ""
  files = [f"{stem}{part}-0000{i}-of-00002.safetensors" for i in (1, 2)]
  weight_map = {name: files[i % 2] for i, name in enumerate(sorted(whole))}
  for file in files:
    save_file({name: whole[name] for name, place in weight_map.items() if place == file}, folder / file)
  (folder / index).write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map=weight_map)))


def old_vae_names(folder):
  """As published before diffusers 0.18: other names of the attention; the weights are linear in both."""
  path = folder / "vae" / "diffusion_pytorch_model.safetensors"
  old = {}
  for name, array in load_file(path).items():
    for today, former in VAE_NAMES.items():
      name = name.replace(f".{today}.", f".{former}.")
    old[name] = array
  assert sum("proj_attn" in name for name in old) == 4 and all(
    array.ndim == 2 for name, array in old.items() if name.endswith("query.weight"))
  save_file(old, path)


def position_ids(folder):
  path = folder / "text_encoder" / "model.safetensors"
  save_file(load_file(path) | {"text_model.embeddings.position_ids": np.arange(77)[None]}, path)


def transformers_5(folder):
  """`dtype` for `torch_dtype`, names without the wrapper, and a tokenizer of one file."""
  path = folder / "text_encoder" / "config.json"
  values = json.loads(path.read_text())
  values["dtype"] = values.pop("torch_dtype", "float32")
  path.write_text(json.dumps(values))
  weights = folder / "text_encoder" / "model.safetensors"
  save_file({name.removeprefix("text_model."): array for name, array in load_file(weights).items()}, weights)


STEM = "diffusion_pytorch_model"
VARIANTS = {
  "fp16": lambda folder: [rename(folder / part, f"{stem}.safetensors", f"{stem}.fp16.safetensors")
                          for part, stem in (("unet", STEM), ("vae", STEM), ("text_encoder", "model"))],
  "bf16": lambda folder: rename(folder / "unet", f"{STEM}.safetensors", f"{STEM}.bf16.safetensors"),
  "non_ema beside": lambda folder: shutil.copy(folder / "unet" / f"{STEM}.safetensors",
                                               folder / "unet" / f"{STEM}.non_ema.safetensors"),
  "shards": lambda folder: shard(folder / "unet", STEM, "", f"{STEM}.safetensors.index.json"),
  "shards of fp16": lambda folder: shard(folder / "unet", STEM, "fp16", f"{STEM}.safetensors.index.fp16.json"),
  "shards of fp16, older": lambda folder: shard(folder / "text_encoder", "model", "fp16",
                                                "model.fp16.safetensors.index.json"),
  "old names of the VAE": old_vae_names,
  "position_ids": position_ids,
  "transformers 5": transformers_5}


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_names(write, variant):
  folder = write("sd15")
  VARIANTS[variant](folder)
  prior, weights = prior_lib.open_prior(folder, jnp.float16)
  assert prior.image_size == 512 and set(weights.networks) == {"unet", "vae"}


def test_a_change_of_names_changes_no_value(write):
  """Numbers in place of zeros, through both names of the VAE's attention."""
  folder, rng = write("sd15"), np.random.default_rng(0)
  path = folder / "vae" / f"{STEM}.safetensors"
  save_file({name: rng.normal(size=array.shape).astype(np.float16) for name, array in load_file(path).items()}, path)
  before = checkpoint.read_component(folder / "vae", "vae", jnp.float16)[1]
  old_vae_names(folder)
  after = checkpoint.read_component(folder / "vae", "vae", jnp.float16)[1]
  attention = ("encoder", "mid_block", "attentions_0")
  for tree in (before, after):
    leaf = tree
    for name in attention:
      leaf = leaf[name]
    assert {"to_q", "to_k", "to_v", "to_out_0", "group_norm"} <= set(leaf)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))
