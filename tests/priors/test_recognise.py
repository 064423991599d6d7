"""Models of no supported family are named in one line: their folders, networks, hub ids."""
import doctest
import json
from pathlib import Path
import shutil

import jax.numpy as jnp
import pytest

from sds_jax.priors import prior as prior_lib, sources
from sds_jax.priors.loading import hub as hub_lib, recognise
from sds_jax.priors.loading.files import CheckpointError

PUBLISHED = Path(__file__).parent / "published"


def refused(folder):
  with pytest.raises(CheckpointError) as caught:
    prior_lib.open_prior(folder)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize("model, kind", [
  ("flux", "FLUX, a transformer"), ("sd35-large", "Stable Diffusion 3, a transformer"),
  ("zero123plus", "Zero123++, which draws six views")])
def test_published_folders(tmp_path, model, kind):
  shutil.copytree(PUBLISHED / model, tmp_path / model)
  message = refused(tmp_path / model)
  assert f"({kind}" in message and "is not supported; supported: 'StableDiffusionPipeline' (1.x and 2.x)" in message


@pytest.mark.parametrize("name, kind", [
  ("PixArtSigmaPipeline", "PixArt"), (["wonder3d", "MVDiffusionImagePipeline"], "Wonder3D"),
  ("StableDiffusionInpaintPipeline", "an inpainting model"), ("StableDiffusionInstructPix2PixPipeline", "InstructPix2"),
  ("StableDiffusionImageVariationPipeline", "image variations"), ("IFSuperResolutionPipeline", "a later stage"),
  ("StableDiffusionUpscalePipeline", "an upscaler"), ("StableDiffusionDepth2ImgPipeline", "a depth-to-image model"),
  ("StableVideoDiffusionPipeline", "a model of videos"), ("LatentConsistencyModelPipeline", "a latent consistency"),
  ("StableDiffusion3Img2ImgPipeline", "Stable Diffusion 3"), ("OnnxStableDiffusionPipeline", "ONNX")])
def test_pipelines(tmp_path, name, kind):
  (tmp_path / "model_index.json").write_text(json.dumps(dict(_class_name=name)))
  assert kind in refused(tmp_path)


def test_an_unknown_pipeline(tmp_path):
  (tmp_path / "model_index.json").write_text(json.dumps(dict(_class_name="WanderPipeline")))
  assert "_class_name='WanderPipeline' is not supported; supported: " in refused(tmp_path)


@pytest.mark.parametrize("channels, kind", [(9, "an inpainting model"), (8, "such as InstructPix2Pix"), (5, "depth"),
                                            (7, "an upscaler")])
def test_a_stable_diffusion_with_other_inputs(sd_folder, tmp_path, channels, kind):
  """Fine-tunes are published under the plain class; the U-Net tells, before its weights are needed."""
  shutil.copytree(sd_folder, tmp_path / "prior")
  path = tmp_path / "prior" / "unet" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(in_channels=channels)))
  with sources.configs_only():
    message = refused(tmp_path / "prior")
  assert f"in_channels is {channels}, expected 4: it is " in message and kind in message


@pytest.mark.parametrize("name, kind", [
  ("stabilityai/stable-diffusion-3-medium-diffusers", "Stable Diffusion 3"),
  ("stabilityai/stable-diffusion-3.5-large", "Stable Diffusion 3"), ("black-forest-labs/FLUX.1-dev", "FLUX"),
  ("black-forest-labs/flux.1-schnell", "FLUX"), ("PixArt-alpha/PixArt-XL-2-512x512", "PixArt"),
  ("sudo-ai/zero123plus-v1.1", "Zero123++"), ("flamehaze1115/wonder3d-v1.0", "Wonder3D"),
  ("runwayml/stable-diffusion-inpainting", "inpainting"), ("timbrooks/instruct-pix2pix", "InstructPix2Pix"),
  ("stabilityai/stable-diffusion-2-inpainting@main", "inpainting"),
  ("stabilityai/stable-diffusion-xl-refiner-1.0", "refiner"), ("DeepFloyd/IF-II-L-v1.0", "later stage"),
  ("lambdalabs/sd-image-variations-diffusers", "image variations")])
def test_hub_ids_are_refused_before_anything_is_fetched(tmp_path, name, kind):
  def never(*_):
    raise AssertionError("the hub was asked")

  with pytest.raises(CheckpointError) as caught:
    sources.find(name, jnp.float32, hub_lib.Hub(tmp_path, never, never))
  message = str(caught.value)
  assert kind in message and "which is not supported; supported: " in message and "\n" not in message


@pytest.mark.parametrize("name", sorted({repo for repos in sources.HUB_IDS.values() for repo in repos} | {
  "nitrosocke/Ghibli-Diffusion", "someone/flux-like-paintings", "runwayml/stable-diffusion-v1-5"}))
def test_other_hub_ids_are_not(name):
  assert recognise.describe_hub_id(name) == ""


@pytest.mark.parametrize("file, kind", [
  ("flux/transformer/config.json", "the transformer of FLUX"), ("sd3-medium/transformer/config.json",
                                                                "the transformer of Stable Diffusion 3"),
  ("pixart-xl-2-512/transformer/config.json", "a diffusion transformer"), ("taesd/config.json", "TAESD"),
  ("sd15/unet/config.json", "a U-Net"), ("sd15/text_encoder/config.json", "a text encoder")])
def test_networks(file, kind):
  assert kind in recognise.describe_network(json.loads((PUBLISHED / file).read_text()))
  assert recognise.describe_network({"_class_name": 3}) == recognise.describe_network({"architectures": []}) == ""


@pytest.mark.parametrize("names, kind", [
  (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
  (["transformer_blocks.0.attn.add_k_proj.weight", "single_transformer_blocks.0.attn.to_q.weight"], "FLUX"),
  (["transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.pos_embed"], "Stable Diffusion 3"),
  (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
  (["adaln_single.linear.weight"], "PixArt"), (["blocks.0.cross_attn.kv_linear.weight"], "PixArt"),
  (["model.diffusion_model.input_blocks.1.0.time_stack.emb_layers.1.weight"], "a model of videos"),
  (["down_blocks.0.attentions.0.transformer_blocks.0.attn_joint_mid.to_q.weight"], "Wonder3D"),
  (["conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight"], "the refiner of Stable Diffusion XL"),
  (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", "conditioner.embedders.1.model.ln_final.bias",
    "cc_projection.weight", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"], "")])
def test_tensors(names, kind):
  assert recognise.describe_tensor_names(names) == kind


def test_examples():
  assert doctest.testmod(recognise).failed == 0
