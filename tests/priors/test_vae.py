"""The autoencoder alone: configs, shapes, clipping, sampling, names in files; for numbers see parity/."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.vae import AutoencoderKL, sample_latents

CONFIG = dict(
  _class_name="AutoencoderKL", _diffusers_version="0.42", act_fn="silu", in_channels=3, out_channels=3,
  latent_channels=2, block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2,
  up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1, norm_num_groups=4, sample_size=8)
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae(random_params):
  """(module, params)"""
  model = AutoencoderKL.from_config(CONFIG)
  return model, random_params(model)


@pytest.fixture(scope="module")
def image():
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 6, 3)), jnp.float32)


@pytest.mark.parametrize("key, value, message", [
  ("act_fn", "mish", r"act_fn='mish' is not supported; supported: 'silu', 'swish', 'relu', 'gelu'"),
  ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
   r"down_block_types=\['Down.*', 'Attn.*'\] is not supported; supported: 'DownEncoderBlock2D'"),
  ("up_block_types", ["AttnUpDecoderBlock2D"] * 2, r"up_block_types=\[.*\] is not supported; supported: 'UpDecoder"),
  ("up_block_types", ["UpDecoderBlock2D"], r"up_block_types=\[.*\] has 1 values, while block_out_channels has 2"),
  ("block_out_channels", [8], r"down_block_types=\[.*\] has 2 values, while block_out_channels has 1"),
  ("layers_per_block", [1, 2], r"layers_per_block=\[1, 2\] is not supported; supported: a whole number"),
  ("norm_num_groups", 6, r"norm_num_groups=6 is not supported with block_out_channels=\[8, 16\]; supported: a divisor"),
  ("shift_factor", 0.1, r"shift_factor=0.1 is not supported; supported: None, 0.0"),
  ("latents_mean", [0., 0.], r"latents_mean=\[0.0, 0.0\] is not supported; supported: None"),
  ("latents_std", [1., 1.], r"latents_std=\[1.0, 1.0\] is not supported; supported: None"),
  ("new_option", 1, r"new_option=1 is not a known option"),
])
def test_config_is_refused(key, value, message):
  with pytest.raises(ValueError, match="AutoencoderKL config: " + message):
    AutoencoderKL.from_config({**CONFIG, key: value})


def test_neutral_options_change_nothing(vae):
  neutral = dict(shift_factor=None, latents_mean=None, latents_std=None, use_quant_conv=True, scaling_factor=0.18215)
  assert AutoencoderKL.from_config({**CONFIG, **neutral}) == vae[0]


SD = dict(
  _class_name="AutoencoderKL", act_fn="silu", block_out_channels=[128, 256, 512, 512],
  down_block_types=["DownEncoderBlock2D"] * 4, in_channels=3, latent_channels=4, layers_per_block=2,
  norm_num_groups=32, out_channels=3, sample_size=512, up_block_types=["UpDecoderBlock2D"] * 4)


def test_the_published_config_has_the_published_size():
  shapes = checkpoint.abstract_params(AutoencoderKL.from_config(SD)).values()
  assert sum(math.prod(leaf.shape) for leaf in shapes) == 83_653_863


def test_shapes_and_dtypes(vae, image):
  model, params = vae
  for dtype in (jnp.float32, jnp.bfloat16):
    def both(image, model=model.clone(dtype=dtype)):
      mean, logvar = model.apply({"params": params}, image, method="encode")
      return mean, logvar, model.apply({"params": params}, mean, method="decode")
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.eval_shape(both, image)]
    assert shapes == [((2, 2, 3, 2), dtype), ((2, 2, 3, 2), dtype), ((2, 4, 6, 3), jnp.float32)]


@pytest.mark.parametrize("method, shape, message", [
  ("encode", (1, 4, 4, 4), r"image has shape \(1, 4, 4, 4\), the encoder takes \[B, H, W, 3\]"),
  ("encode", (4, 4, 3), r"image has shape \(4, 4, 3\), the encoder takes"),
  ("encode", (1, 4, 5, 3), r"image of 4x5: height and width must be divisible by 2"),
  ("decode", (1, 4, 4, 4), r"latents have shape \(1, 4, 4, 4\), the decoder takes \[B, h, w, 2\]")])
def test_inputs_are_checked(vae, method, shape, message):
  with pytest.raises(ValueError, match=message):
    vae[0].apply({"params": vae[1]}, jnp.zeros(shape), method=method)


def test_log_variance_is_clipped_and_the_mean_is_not(vae, image, quick_jit):
  model, params = vae
  # The last layer gives 100, -100 (the means), 90, -90 (the log variances), whatever the image.
  constant = dict(kernel=jnp.zeros((1, 1, 4, 4)), bias=jnp.asarray([100., -100., 90., -90.]))
  mean, logvar = quick_jit(lambda params, image: model.apply({"params": params}, image, method="encode"),
                           {**params, "quant_conv": constant}, image)
  np.testing.assert_array_equal(mean, np.broadcast_to([100, -100], (2, 2, 3, 2)))
  np.testing.assert_array_equal(logvar, np.broadcast_to([20, -30], (2, 2, 3, 2)))


def test_sampled_latents_have_the_given_moments():
  mean, variance, noise = np.random.default_rng(0).uniform(0.5, 2, (3, 1, 2, 2, 4)).astype(np.float32)
  got = sample_latents(*map(jnp.asarray, (mean, np.log(variance), noise)), 0.5)
  np.testing.assert_allclose(got, (mean + np.sqrt(variance) * noise) * 0.5, rtol=1e-5)
  mode = sample_latents(*map(jnp.asarray, (mean, np.log(variance), np.zeros_like(mean))), 0.5)
  np.testing.assert_array_equal(mode, 0.5 * mean)


def test_rematerialization_changes_neither_gradients_nor_names(image, random_params, quick_jit):
  one_level = dict(block_out_channels=[8], down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"])
  model = AutoencoderKL.from_config(CONFIG | one_level)
  params = random_params(model)
  saving = model.clone(remat=True)
  assert checkpoint.abstract_params(saving) == checkpoint.abstract_params(model)

  def gradient(model):
    def loss(image):
      mean, logvar = model.apply({"params": params}, image, method="encode")
      return jnp.sum(jnp.sin(3 * mean)) + jnp.sum(jnp.cos(logvar))
    return jax.grad(loss)

  # The encoder has a block of one residual block, two more in the middle, and one attention.
  recomputed = [str(jax.make_jaxpr(gradient(m))(image)).count("remat2[") for m in (model, saving)]
  assert recomputed == [0, 4]
  plain, again = quick_jit(gradient(model), image), quick_jit(gradient(saving), image)
  assert float(jnp.abs(plain).min(axis=(0, 3)).max()) > 1e-4
  np.testing.assert_allclose(again, plain, rtol=0, atol=1e-5 * float(jnp.abs(plain).max()))  # XLA fuses differently


def older(tensors, as_convolution):
  """The tensors of a file under the names of 2022, which attention's linear layers had in the autoencoder."""
  renamed = {}
  for name, value in tensors.items():
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
      if f".{new}.weight" in name and as_convolution:
        value = value[:, :, None, None]
      name = name.replace(f".{new}.", f".{old}.")
    renamed[name] = value
  return renamed


@pytest.mark.parametrize("as_convolution", [False, True])
def test_older_files_are_read(vae, tmp_path, as_convolution):
  checkpoint.write_component(tmp_path, "vae", CONFIG, vae[1], dtype=jnp.float32)
  tensors = older(load_file(tmp_path / FILE), as_convolution)
  assert {"encoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.value.bias"} <= set(tensors)
  save_file(tensors, tmp_path / FILE)
  model, params = checkpoint.read_component(tmp_path, "vae")
  assert model == vae[0]
  got, expected = map(traverse_util.flatten_dict, (params, vae[1]))
  assert set(got) == set(expected)
  for path in got:
    np.testing.assert_array_equal(got[path], expected[path])


def test_a_layer_under_both_names_is_refused(vae, tmp_path):
  checkpoint.write_component(tmp_path, "vae", CONFIG, vae[1], dtype=jnp.float32)
  tensors = load_file(tmp_path / FILE)
  save_file(tensors | {"decoder.mid_block.attentions.0.key.bias": np.zeros(16, np.float32)}, tmp_path / FILE)
  with pytest.raises(CheckpointError, match=r"decoder.mid_block.attentions.0.(key|to_k).bias stands in .* and again"):
    checkpoint.read_component(tmp_path, "vae")


def test_a_convolution_is_no_linear_layer(vae, tmp_path):
  checkpoint.write_component(tmp_path, "vae", CONFIG, vae[1], dtype=jnp.float32)
  tensors, name = load_file(tmp_path / FILE), "encoder.mid_block.attentions.0.to_q.weight"
  save_file(tensors | {name: np.zeros((16, 16, 3, 3), np.float32)}, tmp_path / FILE)
  with pytest.raises(CheckpointError, match=rf"{name} is \[16, 16, 3, 3\] in the file, \[16, 16\] in the network"):
    checkpoint.read_component(tmp_path, "vae")
