"""Zero-1-to-3 from a picture to guided noise, in both published layouts, against diffusers and transformers.

The folders are written by those libraries, with random weights. Small ones run always, that of the published size when
it is asked for (`pytest -m full_size`): 5 GB of files, 8 GiB of memory, one network of torch at a time.
"""
import gc
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sds_jax.diffusion import guidance
from sds_jax.priors import photo as photo_lib, prior as prior_lib, published
from sds_jax.priors.families import stable_diffusion, zero123
from sds_jax.priors.loading import checkpoint, clip_pixels
from sds_jax.views import poses

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FROM, VIEWS, TIMES, SCALE = 15.0, ((40.0, 200.0), (-5.0, 330.0)), (321, 800), 3.0
"""Elevation of the picture, (elevation, azimuth) of the views, degrees; noise levels; guidance."""

SMALL = dict(
  unet=zero123.ZERO123_UNET | dict(
    sample_size=8, block_out_channels=[32], layers_per_block=1, norm_num_groups=8,
    upcast_attention=None,  # so in folders of the conversion script
    down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"]),
  vae=stable_diffusion.SD_VAE | dict(
    block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, sample_size=16,
    up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1, norm_num_groups=4),
  image_encoder=zero123.CLIP_L_VISION | dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=14, patch_size=7))
FULL = published.PRIORS["zero123"]


def to_torch(torch, array):
  """[B, H, W, C] as torch's [B, C, H, W]."""
  return torch.from_numpy(np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2)))


def back(tensor):
  return tensor.numpy().transpose(0, 2, 3, 1)


def ready(torch, model):
  """The network in evaluation mode, its norms no longer the identity, which would hide mistakes."""
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn(parameter.shape))
  return model.eval()


def camera_layer(torch, diffusers, kind):
  """The projection as its pipeline defines it: one class registers its arguments, the other does not."""
  from diffusers.configuration_utils import ConfigMixin, register_to_config
  from diffusers.models.modeling_utils import ModelMixin

  class CLIPCameraProjection(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, embedding_dim=768, additional_embeddings=4):
      super().__init__()
      self.proj = torch.nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

  class CCProjection(ModelMixin, ConfigMixin):
    def __init__(self, in_channel=772, out_channel=768):
      super().__init__()
      self.projection = torch.nn.Linear(in_channel, out_channel)

  layer = CLIPCameraProjection() if kind == "Zero123Pipeline" else CCProjection()
  return ready(torch, layer), (layer.proj if kind == "Zero123Pipeline" else layer.projection)


def resized(torch, kind, picture, size):
  """[B, C, S, S] in [0, 1] as the pipeline hands it to CLIP, in float32."""
  resize = torch.nn.functional.interpolate
  if kind == "Zero1to3StableDiffusionPipeline":
    return resize(picture, (size, size), mode="bicubic", align_corners=True)
  for shape in ((picture.shape[2], size), (size, size)):
    picture = resize(picture, shape, mode="bicubic", antialias=True).clamp(0, 1)
  return picture


def theirs(torch, diffusers, transformers, folder, kind, configs, picture, z):
  """{what: array} by torch, network after network; each is written into the folder and gone."""
  torch.manual_seed(0)
  picture, shape = to_torch(torch, picture[None]), lambda values: torch.tensor(values).reshape(1, 3, 1, 1)
  encoder = ready(torch, transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(**configs["image_encoder"])))
  pixels = (resized(torch, kind, picture, configs["image_encoder"]["image_size"]) - shape(MEAN)) / shape(STD)
  token = encoder(pixels).image_embeds[:, None]
  encoder.save_pretrained(folder / "image_encoder", max_shard_size="1GB")  # which is what writing takes beside it
  del encoder
  component = zero123.PROJECTIONS[kind]
  layer, linear = camera_layer(torch, diffusers, kind)
  turn = np.radians([azimuth for _, azimuth in VIEWS])
  pose = np.stack([np.radians([FROM - elevation for elevation, _ in VIEWS]), np.sin(turn), np.cos(turn),
                   0 * turn], axis=-1).astype(np.float32)
  text = linear(torch.cat([token.repeat(2, 1, 1), torch.from_numpy(pose)[:, None]], dim=-1))
  layer.save_pretrained(folder / component)
  vae = ready(torch, diffusers.AutoencoderKL(**configs["vae"]))
  latent = vae.encode(2 * picture - 1).latent_dist.mode()
  vae.save_pretrained(folder / "vae")
  del vae
  unet = ready(torch, diffusers.UNet2DConditionModel(**configs["unet"]))
  unet.save_pretrained(folder / "unet", max_shard_size="1GB")
  z, latents = to_torch(torch, z), latent.repeat(2, 1, 1, 1)
  noise_u, noise_c = unet(torch.cat([torch.cat([z, z]), torch.cat([torch.zeros_like(latents), latents])], dim=1),
                          torch.tensor(TIMES * 2), torch.cat([torch.zeros_like(text), text])).sample.chunk(2)
  diffusers.DDIMScheduler(**{**stable_diffusion.SD_SCHEDULER, "clip_sample": False, "steps_offset": 1,
                             "set_alpha_to_one": False}).save_pretrained(folder / "scheduler")
  (folder / "model_index.json").write_text(json.dumps(
    {"_class_name": kind, component: ["zero123", type(layer).__name__], "safety_checker": [None, None],
     "feature_extractor": ["transformers", "CLIPImageProcessor"]}))
  guided = noise_u + SCALE * (noise_c - noise_u)
  return dict(token=token[0].numpy(), latent=back(latent)[0], text=text.numpy(), told=back(noise_c), null=back(noise_u),
              guided=back(guided))


def ours(folder, dtype, picture, z):
  """The same by the package."""
  prior, params = prior_lib.build(folder, dtype)
  seen = prior.photo.encode(jnp.asarray(picture))
  elevation, azimuth = jnp.radians(jnp.asarray(VIEWS, jnp.float32).T)
  pose = poses.relative_pose(elevation, azimuth, jnp.radians(jnp.float32(FROM)), jnp.float32(0.0))

  def guided(params, seen, pose, z):
    cond = prior.photo.conditions(params, seen, pose)
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, photo_lib.null_condition(cond))
    eps = prior.denoise(params, jnp.concatenate([z, z]), jnp.asarray(TIMES * 2), both)
    return dict(text=cond["text"], told=eps[:2], null=eps[2:], guided=guidance.cfg_diffusers(eps[:2], eps[2:], SCALE))

  return dict(token=seen["tokens"], latent=seen["x"], **jax.jit(guided)(params, seen, pose, jnp.asarray(z)))


@pytest.mark.parametrize("kind, configs", [
  ("Zero123Pipeline", SMALL), ("Zero1to3StableDiffusionPipeline", SMALL),
  pytest.param("Zero123Pipeline", FULL, marks=[pytest.mark.full_size, pytest.mark.timeout(3600)])],
  ids=["CLIPCameraProjection", "CCProjection", "full"])
def test_from_a_picture_to_guided_noise(torch, diffusers, transformers, figures, tmp_path, kind, configs):
  rng = np.random.default_rng(0)
  size = configs["unet"]["sample_size"]
  side = size * 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
  y, x = np.mgrid[:side, :side] / side
  disc = np.where((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.1, 0.0, 1.0)
  picture = np.stack([np.maximum(disc, value) for value in (x, 0.2 + 0 * x, 0.5 * y)], -1).astype(np.float32)
  z = rng.normal(size=(2, size, size, 4)).astype(np.float32)
  try:
    with warnings.catch_warnings(), torch.no_grad():
      warnings.simplefilter("ignore")
      expected = theirs(torch, diffusers, transformers, tmp_path, kind, configs, picture, z)
    gc.collect()
    for name, got in ours(tmp_path, jnp.float32, picture, z).items():
      assert figures(f"float32 {name}", got, expected[name]) < 1e-4
    if configs is FULL:
      gc.collect()
      for name, got in ours(tmp_path, jnp.bfloat16, picture, z).items():
        # Guidance is by a difference of two predictions, whose errors it takes three times.
        assert figures(f"bfloat16 {name}", got, expected[name]) < (6e-2 if name == "guided" else 2e-2)
  finally:
    shutil.rmtree(tmp_path)  # gigabytes, of which pytest would keep three


def test_config_of_a_class_that_registers_nothing(torch, diffusers, tmp_path):
  """What published folders of that layout have: no widths."""
  for kind, keys in (("Zero1to3StableDiffusionPipeline", set()),
                     ("Zero123Pipeline", {"embedding_dim", "additional_embeddings"})):
    camera_layer(torch, diffusers, kind)[0].save_pretrained(tmp_path / kind)
    config = json.loads((tmp_path / kind / "config.json").read_text())
    assert {key for key in config if not key.startswith("_")} == keys


def test_a_pickle_is_read(torch, diffusers, tmp_path):
  """As the only form of kxic's folders."""
  layer, linear = camera_layer(torch, diffusers, "Zero1to3StableDiffusionPipeline")
  layer.save_pretrained(tmp_path, safe_serialization=False)
  assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
  with pytest.warns(UserWarning, match="is a pickle, of which only the tensors are read. Safetensors are safer"):
    _, params = checkpoint.read_component(tmp_path, "cc_projection")
  np.testing.assert_array_equal(params["projection"]["kernel"], linear.weight.detach().numpy().T)


def test_pixels_are_the_feature_extractors(transformers):
  """CLIPImageProcessor, which rounds to 8 bits twice: to 1.3 steps of them."""
  rng = np.random.default_rng(1)
  y, x = np.mgrid[:256, :256]
  disc = np.stack([np.where((x - 100) ** 2 + (y - 128) ** 2 < 6400, c, 255) for c in (200, 30, 60)], -1)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    processor = transformers.CLIPImageProcessor()
  for picture in (disc.astype(np.uint8), rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)):
    theirs = processor(images=Image.fromarray(picture), return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    ours = (np.asarray(clip_pixels.antialiased(jnp.asarray(picture[None] / np.float32(255)), 224)[0]) - MEAN) / STD
    assert (255 * np.abs(ours - theirs) * STD).max() < 1.3


def test_aligned_is_torchs(torch):
  """What kornia does in that pipeline, on [-1, 1]; torch finds the places in float32."""
  picture = np.random.default_rng(2).uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(to_torch(torch, picture), (224, 224), mode="bicubic", align_corners=True)
  got = clip_pixels.aligned(jnp.asarray((picture + 1) / 2), 224)
  assert np.abs(got - (back(theirs) + 1) / 2).max() < 1e-4
