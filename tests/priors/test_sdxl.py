"""Stable Diffusion XL: what its folders hold, what it is conditioned on, and what is no text-to-image model."""
import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib, published, sources, spaces
from sds_jax.priors.assemble import StoredNetworks
from sds_jax.priors.base import Options, SizeConditions
from sds_jax.priors.families import family_of, open_folder, read_index, sdxl
from sds_jax.priors.families.stable_diffusion import SD_VAE
from sds_jax.priors.loading import checkpoint, hub, names, text as text_lib
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.source import Source
from sds_jax.priors.networks.clip import CLIPTextModelWithProjection
from sds_jax.priors.networks.vae import AutoencoderKL

PROMPTS = ["a red cube", "a blue cone", ""]


@pytest.fixture(scope="module")
def opened(sdxl_folder, tmp_path_factory):
  """(prior, parameters), with a cache of its own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SDS_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield prior_lib.build(sdxl_folder)


@pytest.fixture
def copy(sdxl_folder, tmp_path):
  """(name of a JSON file, changes) -> the path of a copy of the folder with these changes."""
  def make(name="model_index", **changes):
    folder = tmp_path / "copy"
    shutil.copytree(sdxl_folder, folder)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder

  return make


def test_a_prompt_is_tokens_and_a_vector(opened, sdxl_folder, quick_jit):
  prior, _ = opened
  embedded = prior.embed(PROMPTS)
  assert {name: leaf.shape for name, leaf in embedded.items()} == dict(text=(3, 8, 20), pooled=(3, 6))
  assert float(jnp.abs(embedded["text"][2]).max()) == float(jnp.abs(embedded["pooled"][2]).max()) == 0
  second, params = checkpoint.read_component(sdxl_folder / "text_encoder_2", "clip_text_2", clip_skip=1)
  tokenizer = text_lib.load_tokenizer(sdxl_folder / "tokenizer_2")
  assert tokenizer.pad == tokenizer.backend.token_to_id("!") != tokenizer.eos
  state, pooled = quick_jit(second.apply, {"params": params}, tokenizer(PROMPTS))
  np.testing.assert_allclose(embedded["text"][:2, :, 12:], state[:2], atol=1e-5)
  np.testing.assert_allclose(embedded["pooled"][:2], pooled[:2], atol=1e-5)


def test_both_encoders_are_in_the_cache_by_their_own_files(opened, copy):
  prior, _ = opened
  folder = copy("text_encoder_2/config", hidden_act="quick_gelu")
  changed, _ = prior_lib.open_prior(folder)
  before, after = prior.embed(PROMPTS[:1]), changed.embed(PROMPTS[:1])
  np.testing.assert_array_equal(before["text"][..., :12], after["text"][..., :12])
  assert float(jnp.abs(before["pooled"] - after["pooled"]).max()) > 1e-3


def test_the_empty_prompt_is_encoded_where_the_folder_says_so(copy):
  prior, _ = prior_lib.open_prior(copy(force_zeros_for_empty_prompt=False))
  embedded = prior.embed(["", "  "])
  assert float(jnp.abs(embedded["pooled"]).min()) > 0
  np.testing.assert_array_equal(embedded["text"][0], embedded["text"][1])


def test_sizes_are_conditions(opened, quick_jit):
  prior, params = opened
  assert prior.time_ids == (16, 16, 0, 0, 16, 16)
  z, t, cond = jnp.ones((2, 8, 8, 4)) / 2, jnp.array([500, 500]), prior.embed(PROMPTS[:1] * 2)
  ids = np.array([prior.time_ids] * 2, np.float32) + np.array([[0], [1]], np.float32) * [[0, 0, 4, 0, 0, 0]]
  eps = np.asarray(quick_jit(prior.denoise, params, z, t, dict(cond, time_ids=jnp.asarray(ids, jnp.float32))))
  assert np.abs(eps[1] - eps[0]).max() > 1e-4
  with pytest.raises(ValueError, match="cond has no pooled text, which this prior takes beside the tokens"):
    prior.denoise(params, z, t, dict(text=cond["text"]))


def test_without_sizes_the_priors_are_the_condition():
  asked = []
  unet = SimpleNamespace(apply=lambda variables, z, t, text, labels, *more: asked.append(more) or z)
  prior = prior_lib.make_prior(Source("x", None), spaces.pixel_space(4), unet, dict(
    _class_name="DDIMScheduler", prediction_type="epsilon"), time_ids=(16, 16, 0, 0, 16, 8))
  cond, given = dict(text=None, pooled=np.ones((2, 6))), np.arange(12.0).reshape(2, 6)
  for sizes in ({}, dict(time_ids=given)):
    prior.denoise(dict(unet=None), jnp.zeros((2, 4, 4, 3)), jnp.zeros(2, jnp.int32), cond | sizes)
  assert all(pooled is cond["pooled"] for pooled, _ in asked)
  np.testing.assert_array_equal(asked[0][1], [[16, 16, 0, 0, 16, 8]] * 2)
  np.testing.assert_array_equal(asked[1][1], given)


@pytest.mark.parametrize("sizes, expected", [
  (SizeConditions(), (16, 16, 0, 0, 16, 16)),
  (SizeConditions((1024, 768), (0, 8), (512, 640)), (1024, 768, 0, 8, 512, 640))])
def test_sizes_are_the_callers(sdxl_folder, sizes, expected):
  prior, _ = open_folder(Source("tiny", sdxl_folder), Options(sizes=sizes))
  assert prior.time_ids == expected


@pytest.mark.parametrize("file, changes, message", [
  ("model_index", dict(_class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None]),
   "that of Stable Diffusion XL's refiner, which is not supported"),
  ("model_index", dict(requires_aesthetics_score=True), "Stable Diffusion XL's refiner"),
  ("model_index", dict(force_zeros_for_empty_prompt="yes"), "model_index.json: force_zeros_for_empty_prompt='yes' is"),
  ("model_index", dict(_class_name="StableDiffusionPipeline"),
   "addition_embed_type='text_time' wants the pooled text of Stable Diffusion"),
  ("model_index", dict(_class_name="StableDiffusionXLInpaintPipeline"), "an inpainting model of Stable Diffusion XL"),
  ("unet/config", dict(in_channels=9), "in_channels is 9, expected 4: it is an inpainting model"),
  ("unet/config", dict(in_channels=8), "in_channels is 8, expected 4: it is a model whose U-Net takes an ima"),
  ("text_encoder_2/config", dict(projection_dim=None), "text_encoder_2/config.json: .*projection_dim=None is not supp"),
  ("tokenizer_2/tokenizer_config", dict(model_max_length=7), r"tokenizer/ gives 8 tokens and tokenizer_2/ 7; their"),
  ("scheduler/scheduler_config", dict(_class_name="EDMEulerScheduler"), "_class_name='EDMEulerScheduler' is not supp")])
def test_what_is_refused(copy, file, changes, message):
  folder = copy(file, **changes)
  with checkpoint.configs_only(), pytest.raises(CheckpointError, match=message):
    prior_lib.open_prior(folder)


def test_other_pipelines_of_the_same_weights_are_taken(copy):
  prior, _ = prior_lib.open_prior(copy(_class_name="StableDiffusionXLImg2ImgPipeline"))
  assert prior.x_shape == (8, 8, 4)


@pytest.mark.parametrize("dtype, activations", [(jnp.float16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)])
def test_float16_leaves_the_autoencoder_in_float32(sdxl_folder, dtype, activations):
  prior, _ = prior_lib.open_prior(sdxl_folder, dtype)
  vae = sdxl._open_vae(StoredNetworks(sdxl_folder, dtype), Options(dtype))
  assert vae.dtype == activations
  assert any("overflows in float16" in note for note in prior.notes) == (dtype == jnp.float16)


def test_images_of_another_size_change_the_sizes_that_the_network_takes(sdxl_folder):
  prior, _ = prior_lib.open_prior(sdxl_folder, image_size=32)
  assert prior.x_shape == (16, 16, 4) and prior.time_ids == (32, 32, 0, 0, 32, 32)
  with pytest.raises(CheckpointError, match="config.prior.image_size=33 does not suit .* multiple of 2"):
    prior_lib.open_prior(sdxl_folder, image_size=33)


PUBLISHED_FILES = [
  "model_index.json", "scheduler/scheduler_config.json", "sd_xl_base_1.0.safetensors",
  *(f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2")
    for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
  *(f"{folder}/{name}" for folder in ("text_encoder", "text_encoder_2") for name in (
    "config.json", "flax_model.msgpack", "model.fp16.safetensors", "model.onnx", "model.safetensors")),
  *(f"{folder}/{name}" for folder in ("unet", "vae", "vae_1_0") for name in (
    "config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors")),
  "vae_decoder/config.json", "vae_decoder/model.onnx"]
"""Names in the published repository, as far as they matter here."""


def test_what_is_fetched(sdxl_folder):
  index = read_index(sdxl_folder)
  files = family_of(sdxl_folder, index).files(index)
  chosen = hub.choose_files(PUBLISHED_FILES, files, jnp.bfloat16)
  assert [name for name in chosen if name.endswith(".safetensors")] == [
    f"{folder}/{stem}.fp16.safetensors" for folder, stem in (
      ("unet", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model"),
      ("vae", "diffusion_pytorch_model"))]
  assert {name for name in chosen if name.startswith("tokenizer_2/")} == {
    name for name in PUBLISHED_FILES if name.startswith("tokenizer_2/")}
  without = [name for name in PUBLISHED_FILES if name != "tokenizer_2/merges.txt"]
  with pytest.raises(hub.Unavailable, match="tokenizer_2/ has nothing that is read: expected vocab.json with merges"):
    hub.choose_files(without, files, jnp.bfloat16)


def test_half_a_download_is_noticed(copy):
  folder = copy()
  assert sources.missing(folder) == []
  (folder / "tokenizer_2" / "merges.txt").unlink()
  shutil.rmtree(folder / "text_encoder_2")
  assert [name.split("/")[0] for name in sources.missing(folder)] == ["text_encoder_2", "tokenizer_2"]


def stored_size(shapes, dtype, bytes_each):
  """The size of the safetensors file of these tensors, ordered by name: length, header padded to 8 bytes, data."""
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name in sorted(shapes):
    start, end = end, end + bytes_each * int(np.prod(shapes[name]))
    header[name] = dict(dtype=dtype, shape=list(shapes[name]), data_offsets=[start, end])
  length = len(json.dumps(header, separators=(",", ":")))
  return 8 + length + -length % 8 + end


@pytest.mark.parametrize("kind, count, half, whole", [
  ("unet", 2_567_463_684, 5_135_149_760, 10_270_077_736), ("vae", 83_653_863, 167_335_342, 334_643_268),
  ("clip_text", 123_060_480, 246_144_152, 492_265_168), ("clip_text_2", 694_659_840, 1_389_382_176, 2_778_702_264)])
def test_published_files_have_the_size_of_our_networks(kind, count, half, whole):
  """From the shapes alone: parameters, and the sizes of the files in the published repository to the byte."""
  part = checkpoint.COMPONENTS[kind]
  expected = checkpoint.abstract_params(part.network.from_config(published.PRIORS["sdxl"][kind]))
  shapes = {name: names.checkpoint_shape(path, expected[path].shape)
            for name, path in names.flax_paths(expected, part.table).items()}
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
  assert (stored_size(shapes, "F16", 2), stored_size(shapes, "F32", 4)) == (half, whole)


def test_turbo_differs_in_the_size_of_its_images():
  base, turbo = (prior_lib.open_prior(name, jnp.bfloat16, random_weights=True)[0] for name in ("sdxl", "sdxl-turbo"))
  assert (base.image_size, turbo.image_size) == (1024, 512)
  np.testing.assert_array_equal(base.schedule.alpha, turbo.schedule.alpha)
  embedded = base.embed(["a", "b"])
  assert embedded["text"].shape == (2, 77, 2048) and embedded["pooled"].shape == (2, 1280)
  assert float(jnp.abs(embedded["pooled"][0] - embedded["pooled"][1]).max()) > 1


def test_the_second_encoder_needs_the_end_of_a_text():
  with pytest.raises(ValueError, match="CLIPTextModelWithProjection config: eos_token_id=-1 is not supported"):
    CLIPTextModelWithProjection.from_config(dict(eos_token_id=-1))


def test_its_autoencoder_is_that_of_stable_diffusion_but_for_the_scale():
  """So the parity of the one at full size is that of the other."""
  ours, older = (AutoencoderKL.from_config(config) for config in (sdxl.SDXL_VAE, SD_VAE))
  assert ours == older.clone(scaling_factor=0.13025, sample_size=1024)
