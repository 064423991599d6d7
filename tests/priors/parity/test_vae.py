"""The autoencoder against the one of diffusers, by way of the folders: theirs read by us, ours read by them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks import vae

FILE = "diffusion_pytorch_model.safetensors"
CONFIGS = {
  "sd": dict(block_out_channels=[16, 32], layers_per_block=1, norm_num_groups=8),
  "deep": dict(block_out_channels=[16, 32, 32], layers_per_block=1, norm_num_groups=16, act_fn="gelu", in_channels=4,
               out_channels=5, latent_channels=3, scaling_factor=0.5),  # and faint, see below
  "no_attention": dict(block_out_channels=[32, 16], layers_per_block=2, norm_num_groups=8, use_quant_conv=False,
                       use_post_quant_conv=False, mid_block_add_attention=False),
}


def faint(torch, model):
  """Scales a network down between its norms, so that their epsilon shows; returns it."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if not any(part in name for part in ("norm", "to_q", "to_k")):
        parameter.mul_(0.03)
  return model


def turned(torch, array):
  """NHWC to torch's NCHW."""
  return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def back(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, torch, diffusers, randomize, tmp_path_factory):
  """(theirs, ours, our parameters, {input: array}) of one config; the folder is theirs."""
  config = CONFIGS[request.param]
  blocks = len(config["block_out_channels"])
  torch.manual_seed(0)  # errors in bfloat16 are between 1 and 3 % of the largest value, as the weights have it
  theirs = randomize(torch, diffusers.AutoencoderKL(
    **config, down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks))
  if request.param == "deep":
    theirs = faint(torch, theirs)
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder, safe_serialization=True)
  ours, params = checkpoint.read_component(folder, "vae")
  rng, latents = np.random.default_rng(0), (2, 4, 2, ours.latent_channels)
  size = 2 ** (blocks - 1)
  draw = dict(image=rng.uniform(-1, 1, (2, 4 * size, 2 * size, ours.in_channels)), latents=rng.normal(size=latents),
              cotangent=rng.normal(size=latents))
  return theirs, ours, params, {name: value.astype(np.float32) for name, value in draw.items()}


def run(quick_jit, ours, params, inputs):
  """Mean, log variance, gradient of <cotangent, mean> in the image, decoded latents."""
  def everything(params, image, latents, cotangent):
    (mean, logvar), pullback = jax.vjp(lambda x: ours.apply({"params": params}, x, method="encode"), image)
    gradient, = pullback((cotangent.astype(mean.dtype), jnp.zeros_like(logvar)))
    return mean, logvar, gradient, ours.apply({"params": params}, latents, method="decode")
  return quick_jit(everything, params, *(inputs[name] for name in ("image", "latents", "cotangent")))


@pytest.fixture(scope="module")
def result(pair, quick_jit):
  """Ours of `run`, in float32."""
  return run(quick_jit, *pair[1:])


def test_everything_agrees(torch, pair, result, relative_error):
  theirs, ours, _, inputs = pair
  mean, logvar, gradient, decoded = result
  image = turned(torch, inputs["image"]).requires_grad_()
  posterior = theirs.encode(image).latent_dist
  (posterior.mean * turned(torch, inputs["cotangent"])).sum().backward()
  assert relative_error(mean, back(posterior.mean)) < 1e-4
  assert relative_error(logvar, back(posterior.logvar)) < 1e-4
  assert -30 < float(logvar.min()) and float(logvar.max()) < 20  # so that nothing was hidden by clipping
  assert relative_error(gradient, back(image.grad)) < 1e-3
  with torch.no_grad():
    assert relative_error(decoded, back(theirs.decode(turned(torch, inputs["latents"])).sample)) < 1e-4

  noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
  expected = posterior.sample(torch.Generator().manual_seed(3)) * theirs.config.scaling_factor
  got = vae.sample_latents(mean, logvar, jnp.asarray(back(noise)), ours.scaling_factor)
  assert relative_error(got, back(expected)) < 1e-4


@pytest.mark.parametrize("pair", ["sd"], indirect=True)
def test_bfloat16_is_near_float32(pair, result, quick_jit, relative_error):
  _, ours, params, inputs = pair
  rounded = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), params)
  half = run(quick_jit, ours.clone(dtype=jnp.bfloat16), rounded, inputs)
  errors = [relative_error(got.astype(jnp.float32), expected) for got, expected in zip(half, result)]
  assert [got.dtype for got in half] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
  assert 1e-4 < min(errors), errors  # so it did run in bfloat16
  assert max(errors[0], errors[1], errors[3]) < 2e-2, errors
  assert errors[2] < 5e-2, errors  # the gradient in the image


def test_what_we_write_is_read_by_diffusers(torch, diffusers, pair, tmp_path):
  theirs, _, params, _ = pair
  checkpoint.write_component(tmp_path, "vae", dict(theirs.config), params, dtype=jnp.float32)
  reopened = diffusers.AutoencoderKL.from_pretrained(tmp_path, use_safetensors=True).state_dict()
  assert set(reopened) == set(theirs.state_dict())
  assert all(torch.equal(reopened[name], value) for name, value in theirs.state_dict().items())


def test_older_names_mean_what_diffusers_takes_them_for(torch, diffusers, pair, tmp_path):
  theirs, _, params, _ = pair
  theirs.save_pretrained(tmp_path, safe_serialization=True)
  tensors = load_file(tmp_path / FILE)
  for name in list(tensors):
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
      if f".{new}." in name:
        tensors[name.replace(new, old)] = tensors.pop(name)
  save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
  reopened = diffusers.AutoencoderKL.from_pretrained(tmp_path, use_safetensors=True).state_dict()
  assert all(torch.equal(reopened[name], value) for name, value in theirs.state_dict().items())
  jax.tree.map(np.testing.assert_array_equal, checkpoint.read_component(tmp_path, "vae")[1], params)
