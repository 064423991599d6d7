"""MVDream's folders and cameras, without PyTorch."""
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import prior as prior_lib, sample, sources
from sds_jax.priors.families import mvdream
from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.multiview_unet import MultiViewUNetModel
from sds_jax.views import cameras

# The published model_index.json and, but for its widths, config.json.
INDEX = dict(
  _class_name="MVDreamPipeline", _diffusers_version="0.25.0", feature_extractor=[None, None],
  image_encoder=[None, None], requires_safety_checker=False, scheduler=["diffusers", "DDIMScheduler"],
  text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
  unet=["mv_unet", "MultiViewUNetModel"], vae=["diffusers", "AutoencoderKL"])
UNET = dict(_class_name="MultiViewUNetModel", _diffusers_version="0.25.0", attention_resolutions=[1], camera_dim=16,
            channel_mult=[1, 2], context_dim=12, image_size=8, in_channels=4, model_channels=32, num_head_channels=16,
            num_res_blocks=1, out_channels=4, transformer_depth=1)


@pytest.fixture(scope="module")
def folder(sd_folder, random_params, tmp_path_factory):
  """A whole folder: 16x16 images, 8x8x4 latents, the U-Net with the names of latent diffusion."""
  folder = tmp_path_factory.mktemp("mvdream")
  for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
    (folder / part).symlink_to(sd_folder / part)
  (folder / "model_index.json").write_text(json.dumps(INDEX))
  (folder / "unet").mkdir()
  (folder / "unet" / "config.json").write_text(json.dumps(UNET))
  unet = MultiViewUNetModel.from_config(UNET)
  params = checkpoint.traverse_util.flatten_dict(random_params(unet))
  table = mvdream.stored_names(unet)
  save_file({name: np.ascontiguousarray(names.to_checkpoint(path, np.asarray(params[path])))
             for name, path in names.flax_paths(params, table).items()},
            folder / "unet" / "diffusion_pytorch_model.safetensors")
  return folder


def test_names_are_those_of_latent_diffusion(folder):
  stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
  assert {"time_embed.0.weight", "camera_embed.0.weight", "camera_embed.2.bias", "input_blocks.0.0.weight",
          "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.2.0.op.weight",
          "middle_block.1.proj_in.weight", "output_blocks.1.1.conv.weight", "out.2.weight"} <= set(stored)
  assert stored["camera_embed.0.weight"].shape == (128, 16)


def test_a_prior_of_four_views(folder, quick_jit):
  prior, params = prior_lib.build(folder)
  assert (prior.views, prior.camera_dim, prior.image_size, prior.x_shape) == (4, 16, 16, (8, 8, 4))
  assert sources.views_of(str(folder)) == sources.views_of("mvdream") == 4 and sources.views_of("sd15") == 1
  assert sources.views_of("ashawkey/mvdream-sd2.1-diffusers") == 4
  images = sample.sample(prior, params, ["a red cube"] * 4, jax.random.key(0), steps=2)
  assert images.shape == (4, 16, 16, 3) and np.isfinite(images).all()
  with pytest.raises(ValueError, match="so the number of images must be a multiple of 4, not 3"):
    sample.sample(prior, params, ["a red cube"] * 3, jax.random.key(0))
  with pytest.raises(ValueError, match="batch of 3; the network looks at 4 views"):
    prior.denoise(params, jnp.zeros((3, 8, 8, 4)), jnp.zeros(3, jnp.int32), prior.embed(["a"] * 3))


@pytest.mark.parametrize("module", ["down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
                                    "input_blocks_1_1_transformer_blocks_0_attn1_to_q"])
def test_a_lora_of_the_base_model(folder, tmp_path, module):
  down, up = (np.full(shape, value, np.float32) for shape, value in (((2, 32), 0.5), ((32, 2), 0.25)))
  save_file({f"lora_unet_{module}.lora_down.weight": down, f"lora_unet_{module}.lora_up.weight": up},
            tmp_path / "a.safetensors")
  options = mvdream.Options(lora=((tmp_path / "a.safetensors", 2.0),))
  _, weights = mvdream.open_folder(sources.Source("tiny", folder), INDEX, options)
  stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
  query = weights.load()["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]["kernel"]
  expected = stored["input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"] + 2 * up @ down
  np.testing.assert_allclose(query, expected.T, atol=1e-6)


def test_random_weights(tiny_published):
  prior, weights = prior_lib.open_prior("mvdream", random_weights=True)
  assert prior.views == 4 and weights.networks["unet"].views == 4
  shape = jax.eval_shape(prior.denoise, weights.shapes, jnp.zeros((8, 8, 8, 4)), jnp.zeros(8, jnp.int32),
                         dict(prior.embed(["a"] * 8), camera=jnp.zeros((8, 16)))).shape
  assert shape == (8, 8, 8, 4)


def test_the_camera_is_a_matrix_in_blenders_axes():
  """The original code's `get_camera`: an orbit in OpenGL's axes, turned into Blender's, its azimuth 0 at -y."""
  elevation, azimuth = math.radians(20), math.radians(75)
  ours = mvdream.camera_matrix(cameras.orbit(azimuth, elevation, 3.1, 0.8)).reshape(4, 4)
  turned = azimuth + math.pi / 2
  position = np.array([math.cos(elevation) * math.sin(turned), math.sin(elevation),
                       math.cos(elevation) * math.cos(turned)])
  forward = -position
  right = np.cross(forward, [0, 1, 0])
  right /= np.linalg.norm(right)
  expected = np.eye(4)
  expected[:3] = np.stack([right, np.cross(right, forward), -forward, position], -1)
  expected = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ expected
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_single_file(ldm_models, tmp_path):
  """The original file: Stable Diffusion 2's names and four tensors of the camera."""
  _, tensors = ldm_models["SD2"]
  width = tensors["model.diffusion_model.time_embed.0.weight"].shape[0]
  camera = {"0.weight": (width, 16), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
  tensors = tensors | {f"model.diffusion_model.camera_embed.{name}": np.full(shape, 0.01, np.float16)
                       for name, shape in camera.items()}
  path = tmp_path / "sd-v2.1-base-4view.safetensors"
  save_file(tensors, path)
  assert sources.views_of(str(path)) == 4
  prior, params = prior_lib.build(path)
  assert (prior.views, prior.camera_dim, prior.prediction_type) == (4, 16, "epsilon")
  assert params["unet"]["class_embedding"]["linear_1"]["kernel"].shape == (16, width)
  save_file(tensors | {"model.diffusion_model.image_embed.latents": np.zeros((1, 16, 8), np.float16)}, path)
  with pytest.raises(CheckpointError, match="is a single-file checkpoint of ImageDream; this kind of model is not"):
    prior_lib.build(path)


@pytest.mark.parametrize("changes, words", [
  ({"ip_dim": 16}, "ip_dim=16 is not supported; supported: 0 .MVDream; ImageDream, which sees a photo, is not"),
  ({"num_head_channels": 24}, "num_head_channels=24 is not supported with a width of 32"),
  ({"camera_dim": None}, "camera_dim=None is not supported"),
  ({"_class_name": "UNet3DConditionModel"}, "_class_name='UNet3DConditionModel' is not supported; supported: 'Multi"),
  ({"dims": 3}, "dims=3 is not supported; supported: 2"),
  ({"wings": 2}, "wings=2 is not a known option"),
  ({"attention_resolutions": "all"}, "attention_resolutions='all' is not supported")])
def test_configs_that_are_not_supported(folder, tmp_path, changes, words):
  for part in folder.iterdir():
    if part.name != "unet":
      (tmp_path / part.name).symlink_to(part)
  (tmp_path / "unet").mkdir()
  (tmp_path / "unet" / "config.json").write_text(json.dumps(UNET | changes))
  with pytest.raises(CheckpointError, match=words) as caught:
    prior_lib.build(tmp_path)
  assert "\n" not in str(caught.value) and "unet/config.json" in str(caught.value)
