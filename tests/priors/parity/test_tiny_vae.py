"""TAESD against diffusers' AutoencoderTiny, by way of the folders: theirs read by us, ours read by them."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks.autoencoders import Autoencoder

CONFIGS = {
  "tiny": dict(encoder_block_out_channels=[8, 8], decoder_block_out_channels=[8, 8], num_encoder_blocks=[1, 2],
               num_decoder_blocks=[2, 1]),
  "three": dict(encoder_block_out_channels=[8] * 3, decoder_block_out_channels=[12] * 3, num_encoder_blocks=[0, 1, 1],
                num_decoder_blocks=[1, 0, 1], in_channels=4, latent_channels=3, act_fn="gelu"),
}
# The config.json of IDKiro/sdxs-512-0.9's vae/, an AutoencoderTiny for latents of Stable Diffusion.
PUBLISHED = dict(
  _class_name="AutoencoderTiny", _diffusers_version="0.20.0.dev0", act_fn="relu", block_out_channels=[64] * 4,
  decoder_block_out_channels=[64] * 4, encoder_block_out_channels=[64] * 4, force_upcast=False, in_channels=3,
  latent_channels=4, latent_magnitude=3, latent_shift=0.5, num_decoder_blocks=[3, 3, 3, 1],
  num_encoder_blocks=[1, 3, 3, 3], out_channels=3, scaling_factor=1.0, upsampling_scaling_factor=2)


def turned(torch, array):
  """NHWC to torch's NCHW."""
  return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def back(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, torch, diffusers, randomize, tmp_path_factory):
  """(theirs, ours, our parameters, {input: array}) of one config; the folder is theirs."""
  config = CONFIGS[request.param]
  torch.manual_seed(0)
  theirs = randomize(torch, diffusers.AutoencoderTiny(**config))
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder, safe_serialization=True)
  ours, params = checkpoint.read_component(folder, "vae")
  rng, latents = np.random.default_rng(0), (2, 4, 2, ours.latent_channels)
  draw = dict(image=rng.uniform(-1, 1, (2, 4 * ours.factor, 2 * ours.factor, ours.in_channels)),
              latents=3 * rng.normal(size=latents), cotangent=rng.normal(size=latents))
  return theirs, ours, params, {name: value.astype(np.float32) for name, value in draw.items()}


def run(quick_jit, ours, params, inputs):
  """Latents, gradient of <cotangent, latents> in the image, decoded latents."""
  def everything(params, image, latents, cotangent):
    z, pullback = jax.vjp(lambda x: ours.apply({"params": params}, x, method="encode"), image)
    return z, pullback(cotangent.astype(z.dtype))[0], ours.apply({"params": params}, latents, method="decode")
  return quick_jit(everything, params, *(inputs[name] for name in ("image", "latents", "cotangent")))


@pytest.fixture(scope="module")
def result(pair, quick_jit):
  """Ours of `run`, in float32."""
  return run(quick_jit, *pair[1:])


def test_everything_agrees(torch, pair, result, relative_error):
  theirs, _, _, inputs = pair
  latents, gradient, decoded = result
  image = turned(torch, inputs["image"]).requires_grad_()
  expected = theirs.encode(image).latents
  (expected * turned(torch, inputs["cotangent"])).sum().backward()
  assert relative_error(latents, back(expected)) < 1e-4
  assert relative_error(gradient, back(image.grad)) < 1e-4
  with torch.no_grad():
    assert relative_error(decoded, back(theirs.decode(turned(torch, inputs["latents"])).sample)) < 1e-4


@pytest.mark.parametrize("pair", ["tiny"], indirect=True)
def test_bfloat16_is_near_float32(pair, result, quick_jit, relative_error):
  _, ours, params, inputs = pair
  half = run(quick_jit, ours.clone(dtype=jnp.bfloat16, remat=True),
             jax.tree.map(lambda a: a.astype(jnp.bfloat16), params), inputs)
  errors = [relative_error(got.astype(jnp.float32), expected) for got, expected in zip(half, result)]
  assert [got.dtype for got in half] == [jnp.bfloat16, jnp.float32, jnp.float32]
  assert 1e-4 < min(errors) and max(errors[0], errors[2]) < 2e-2, errors
  # The derivative of ReLU jumps: where bfloat16 moves an activation across 0, single pixels differ much.
  a, b = (np.asarray(one[1], np.float64).ravel() for one in (half, result))
  assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.98


@pytest.mark.parametrize("pair", ["tiny"], indirect=True)
def test_what_we_write_is_read_by_diffusers(torch, diffusers, pair, tmp_path):
  theirs, _, params, _ = pair
  checkpoint.write_component(tmp_path, "vae", dict(theirs.config, _class_name="AutoencoderTiny"), params,
                             dtype=jnp.float32)
  reopened = diffusers.AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True).state_dict()
  assert set(reopened) == set(theirs.state_dict())
  assert all(torch.equal(reopened[name], value) for name, value in theirs.state_dict().items())


def test_the_published_config_has_the_names_and_shapes_of_diffusers(torch, diffusers):
  expected = {name: tuple(value.shape) for name, value in diffusers.AutoencoderTiny.from_config(
    PUBLISHED).state_dict().items()}
  table = checkpoint.COMPONENTS["vae"].table
  shapes = checkpoint.abstract_params(Autoencoder.from_config(PUBLISHED))
  assert {checkpoint.names.checkpoint_name(path, table): checkpoint.names.checkpoint_shape(path, leaf.shape)
          for path, leaf in shapes.items()} == expected
  assert len(expected) == 134 and sum(map(math.prod, expected.values())) == 2_445_063
