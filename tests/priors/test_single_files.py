"""Files and folders that are no prior: one line says what each is, and what to do."""
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors import sources
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.single_files import describe_names

CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
UNET = "a single file without autoencoder and text encoder, a part of a model: name it by config.prior.unet=FILE"
KINDS = [
  ({CROSS: (8, 768), FIRST: (8, 4, 3, 3)}, UNET), ({CROSS: (8, 1024), FIRST: (8, 4, 3, 3)}, UNET),
  ({"cc_projection.weight": (4, 4), CROSS: (8, 768)}, UNET),
  ({CROSS: (8, 768), FIRST: (8, 9, 3, 3)}, "Stable Diffusion 1.x .inpainting.; this kind of model is not supported"),
  ({"conditioner.embedders.1.model.ln_final.weight": (4,), CROSS: (8, 2048)}, "a part of Stable Diffusion XL; this"),
  ({"model.diffusion_model.double_blocks.0.img_mod.lin.weight": (4, 4)}, "of FLUX; this kind"),
  ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (4, 4)}, "of Stable Diffusion 3; this kind"),
  ({"single_transformer_blocks.0.attn.to_q.weight": (4, 4)}, "of FLUX; this kind"),
  ({"transformer_blocks.0.attn.add_q_proj.weight": (4, 4)}, "of Stable Diffusion 3; this kind"),
  ({"adaln_single.linear.weight": (4, 4)}, "of PixArt; this kind"),
  ({"conditioner.embedders.0.model.ln_final.weight": (4,), CROSS: (8, 1280)}, "the refiner of Stable Diffusion XL; "),
  ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 4)}, "a LoRA, an addition to a model"),
  ({"unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": (4, 4)}, "a LoRA, an addition to a model"),
  ({"unet.down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight": (4, 4)}, "a LoRA, an addition"),
  ({"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (4, 4)}, "a LoRA, an"),
  ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (4, 4)}, "a LoRA, an addition"),
  ({"emb_params": (2, 768)}, "a textual inversion, an addition"), ({"<cat-toy>": (768,)}, "a textual inversion, an"),
  ({"controlnet_cond_embedding.conv_in.weight": (4, 4)}, "a ControlNet, an addition"),
  ({"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (4, 4)},
   "a U-Net alone, a part of a model: name it by config.prior.unet=FILE"),
  ({"encoder.conv_in.weight": (4, 4)}, "an autoencoder .VAE. alone, a part"),
  ({"text_model.final_layer_norm.weight": (4,)}, "a text encoder alone, a part"),
  ({"x": (1,)}, "a file of weights of an unknown kind; name the folder")]


@pytest.mark.parametrize("shapes, words", KINDS, ids=[next(iter(shapes))[:30] for shapes, _ in KINDS])
def test_kinds(tmp_path, shapes, words):
  path = tmp_path / "model.safetensors"
  save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
  for name in (path, tmp_path):  # the file, and a folder with nothing else
    with pytest.raises(CheckpointError, match=words) as error:
      sources.open_folder(sources.find(str(name), "float32"), sources.Options())
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_other_files(tmp_path):
  for name, content, words in (("a.ckpt", b"PK\x03\x04", "is damaged or truncated"),
                               ("a.bin", b"\x80\x02", "is a pickle of torch before 1.6"),
                               ("a.gguf", b"GGUF", "is a GGUF file"),
                               ("a.txt", b"hello", "is no file of weights: name a file of safetensors"),
                               ("a.safetensors", b"\xff" * 20, "is damaged or truncated"),
                               ("b.safetensors", b"", "is empty"),
                               ("c.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer")):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
      sources.find(str(tmp_path / name), "float32")
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(CheckpointError, match="there is no such file"):
    sources.find("models/none.safetensors", "float32")


@pytest.mark.parametrize("names, words", [
  (["README.md", "pytorch_lora_weights.safetensors"], "it holds a LoRA .pytorch_lora_weights.safetensors."),
  (["adapter_config.json", "adapter_model.safetensors"], "it holds a LoRA"),
  (["learned_embeds.bin"], "it holds a textual inversion"),
  (["config.json", "diffusion_pytorch_model.safetensors"], "it holds one network"),
  (["v1-5-pruned.ckpt", "v1-5-pruned.safetensors"], "it holds single-file checkpoints"),
  (["inner/model_index.json"], "the folder inner/ in it has one"), (["README.md"], "^$")])
def test_names_alone(names, words):
  assert re.search(words, describe_names(names))


@pytest.mark.parametrize("name, works", [
  (["pipeline_zero", "StableDiffusionPipeline"], True), ([], False), ([["a"], "b"], False), (3, False), ({}, False)])
def test_a_class_name_may_be_a_list(tmp_path, name, works):
  """Pipelines with code of their own have module and class; without weights the next error names the scheduler."""
  (tmp_path / "model_index.json").write_text(json.dumps(dict(_class_name=name)))
  words = "scheduler_config.json does not exist" if works else r"model_index.json: _class_name=.* should be the name"
  with pytest.raises(CheckpointError, match=words):
    sources.open_folder(sources.find(str(tmp_path), "float32"), sources.Options())
  if not works:
    with pytest.raises(CheckpointError, match="should be the name"):
      sources.is_small(str(tmp_path))
