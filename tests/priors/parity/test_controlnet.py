"""ControlNet against diffusers: its residuals, and the U-Net that gets them; by way of the folders."""
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint, controlnet_names, names
from sds_jax.priors.networks.controlnet import ControlNetModel

ENCODER = dict(
  in_channels=4, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], block_out_channels=[16, 32],
  layers_per_block=1, norm_num_groups=8, cross_attention_dim=20, attention_head_dim=4)
CONTROL = ENCODER | dict(conditioning_embedding_out_channels=[8, 12, 16])
UNET = ENCODER | dict(sample_size=8, out_channels=4, up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
# The config.json in controlnet/ of LiheYoung/Depth-Anything, a ControlNet of Stable Diffusion 1.5.
PUBLISHED = dict(
  _class_name="ControlNetModel", _diffusers_version="0.26.0.dev0", act_fn="silu", addition_embed_type=None,
  addition_embed_type_num_heads=64, addition_time_embed_dim=None, attention_head_dim=8,
  block_out_channels=[320, 640, 1280, 1280], class_embed_type=None, conditioning_channels=3,
  conditioning_embedding_out_channels=[16, 32, 96, 256], controlnet_conditioning_channel_order="rgb",
  cross_attention_dim=768, down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], downsample_padding=1,
  encoder_hid_dim=None, encoder_hid_dim_type=None, flip_sin_to_cos=True, freq_shift=0, global_pool_conditions=False,
  in_channels=4, layers_per_block=2, mid_block_scale_factor=1, mid_block_type="UNetMidBlock2DCrossAttn", norm_eps=1e-05,
  norm_num_groups=32, num_attention_heads=None, num_class_embeds=None, only_cross_attention=False,
  projection_class_embeddings_input_dim=None, resnet_time_scale_shift="default", transformer_layers_per_block=1,
  upcast_attention=False, use_linear_projection=False)
SCALE = 0.7


def turned(torch, array):
  """NHWC to torch's NCHW."""
  return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def back(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def drawn(z=(2, 4, 6, 4), tokens=(2, 5, 20), image=(2, 16, 24, 3)):
  """The inputs of both networks, of small shapes by default."""
  rng = np.random.default_rng(0)
  return dict(z=rng.normal(size=z).astype(np.float32), t=np.array([3, 977])[:z[0]],
              text=rng.normal(size=tokens).astype(np.float32), image=rng.uniform(size=image).astype(np.float32))


def theirs_of(torch, control, unet, inputs):
  """(residuals, prediction) of diffusers."""
  z, t, text, image = turned(torch, inputs["z"]), *(torch.from_numpy(inputs[k]) for k in ("t", "text")), turned(
    torch, inputs["image"])
  with torch.no_grad():
    down, middle = control(z, t, text, image, conditioning_scale=SCALE, return_dict=False)
    out = unet(z, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
  return [back(one) for one in (*down, middle)], back(out)


def ours_of(control, unet):
  """(parameters of both, inputs) -> (residuals, prediction) of this package."""
  def both(params, z, t, text, image):
    residuals = control.apply({"params": params["controlnet"]}, z, t, text, image)
    residuals = tuple(SCALE * one for one in residuals)
    return residuals, unet.apply({"params": params["unet"]}, z, t, text, residuals=residuals)
  return both


@pytest.fixture(scope="module")
def pair(torch, diffusers, randomize, tmp_path_factory):
  """(their control, their U-Net, {name: (our module, parameters)}); the folders are theirs."""
  folder, theirs, ours = tmp_path_factory.mktemp("control"), {}, {}
  for name, kind, config in (("controlnet", "ControlNetModel", CONTROL), ("unet", "UNet2DConditionModel", UNET)):
    theirs[name] = randomize(torch, getattr(diffusers, kind)(**config))
    theirs[name].save_pretrained(folder / name, safe_serialization=True)
    ours[name] = checkpoint.read_component(folder / name, name)
  return theirs["controlnet"], theirs["unet"], ours


@pytest.fixture(scope="module")
def result(pair, quick_jit):
  ours, inputs = pair[2], drawn()
  params = {name: tree for name, (_, tree) in ours.items()}
  return quick_jit(ours_of(ours["controlnet"][0], ours["unet"][0]), params, *inputs.values())


def test_residuals_and_prediction_agree(torch, pair, result, relative_error):
  expected, out = theirs_of(torch, *pair[:2], drawn())
  assert len(result[0]) == len(expected) == 5  # the first convolution, two blocks, one halving, the middle
  for got, want in zip(result[0], expected):
    assert relative_error(got, want) < 1e-4
  assert relative_error(result[1], out) < 1e-4
  with torch.no_grad():
    inputs = drawn()
    plain = pair[1](turned(torch, inputs["z"]), torch.from_numpy(inputs["t"]), torch.from_numpy(inputs["text"])).sample
  assert relative_error(back(plain), out) > 1e-2  # the residuals matter


def test_bfloat16_is_near_float32(pair, result, quick_jit, relative_error):
  network, params = pair[2]["controlnet"]
  params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
  half = quick_jit(network.clone(dtype=jnp.bfloat16).apply, {"params": params}, *drawn().values())
  errors = [relative_error(SCALE * np.asarray(got, np.float32), want)
            for got, want in zip(half, result[0], strict=True)]
  assert 1e-4 < min(errors) and max(errors) < 2e-2, errors


def test_what_we_write_is_read_by_diffusers(torch, diffusers, pair, tmp_path):
  theirs, params = pair[0], pair[2]["controlnet"][1]
  checkpoint.write_component(tmp_path, "controlnet", dict(theirs.config), params, dtype=jnp.float32)
  reopened = diffusers.ControlNetModel.from_pretrained(tmp_path, use_safetensors=True).state_dict()
  assert set(reopened) == set(theirs.state_dict())
  assert all(torch.equal(reopened[name], value) for name, value in theirs.state_dict().items())


def test_the_published_config_has_the_names_and_shapes_of_diffusers(torch, diffusers):
  with torch.device("meta"):
    expected = {name: tuple(value.shape) for name, value in diffusers.ControlNetModel.from_config(
      PUBLISHED).state_dict().items()}
  table = checkpoint.COMPONENTS["controlnet"].table
  shapes = checkpoint.abstract_params(ControlNetModel.from_config(PUBLISHED))
  assert {names.checkpoint_name(path, table): names.checkpoint_shape(path, leaf.shape)
          for path, leaf in shapes.items()} == expected
  assert len(expected) == 340 and sum(map(math.prod, expected.values())) == 361_279_120


def test_the_original_names_are_those_that_diffusers_converts(diffusers):
  network = ControlNetModel.from_config(PUBLISHED)
  plain = [names.checkpoint_name(path, names.UNET) for path in checkpoint.abstract_params(network)]
  file = {controlnet_names.PREFIX + controlnet_names.original_name(name, network): name for name in plain}
  convert = importlib.import_module("diffusers.loaders.single_file_utils").convert_controlnet_checkpoint
  assert len(file) == len(plain) and convert(file, PUBLISHED) == dict(zip(plain, plain))


@pytest.mark.full_size
def test_full_size(torch, diffusers, relative_error, figures, tmp_path):
  """Random weights of the published shapes, one 64x64 latent and an image of 512x512."""
  torch.manual_seed(0)
  unet = UNET | {key: PUBLISHED[key] for key in ENCODER} | dict(
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, sample_size=64)
  theirs = dict(controlnet=diffusers.ControlNetModel.from_config(PUBLISHED).eval(),
                unet=diffusers.UNet2DConditionModel(**unet).eval())
  with torch.no_grad():
    for name, parameter in theirs["controlnet"].named_parameters():
      if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
        parameter.normal_(std=0.02)  # zero as they are made, so that nothing would be compared
  inputs = drawn((1, 64, 64, 4), (1, 77, 768), (1, 512, 512, 3))
  expected = theirs_of(torch, *theirs.values(), inputs)
  ours = {}
  for name in list(theirs):
    theirs.pop(name).save_pretrained(tmp_path / name, safe_serialization=True)
    ours[name] = checkpoint.read_component(tmp_path / name, name)
  params = {name: tree for name, (_, tree) in ours.items()}
  assert sum(leaf.size for leaf in jax.tree.leaves(params["controlnet"])) == 361_279_120
  got = jax.jit(ours_of(*(ours[name][0] for name in ("controlnet", "unet"))))(params, *inputs.values())
  for i, pair in enumerate(zip(got[0], expected[0])):
    assert figures(f"residual {i}", *pair) < 1e-4
  assert figures("prediction", got[1], expected[1]) < 1e-4
