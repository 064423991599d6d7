"""The autoencoder of Stable Diffusion 1.x at its full size (84 M parameters, random) against the one of diffusers.

Takes minutes and about 4 GB on a CPU, so it runs only when asked for: pytest -m full_size
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import checkpoint
from sds_jax.priors.published import SD_VAE


def turned(torch, array):
  return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def back(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def pair(torch, diffusers, tmp_path_factory):
  """(theirs, ours, our parameters). Weights keep torch's initialization, under which attention is not saturated."""
  torch.manual_seed(0)
  theirs = diffusers.AutoencoderKL(**SD_VAE).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn(parameter.shape))
  folder = tmp_path_factory.mktemp("full_size_vae")
  theirs.save_pretrained(folder, safe_serialization=True)
  return theirs, *checkpoint.read_component(folder, "vae")


@pytest.mark.full_size
@pytest.mark.timeout(3600)
def test_encoder_and_its_gradient(torch, pair, relative_error):
  theirs, ours, params = pair
  rng = np.random.default_rng(0)
  pixels = rng.uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
  cotangent = rng.normal(size=(1, 16, 16, 4)).astype(np.float32)

  def encode(params, image, cotangent):
    (mean, logvar), pullback = jax.vjp(lambda x: ours.apply({"params": params}, x, method="encode"), image)
    return mean, logvar, pullback((cotangent, jnp.zeros_like(logvar)))[0]

  mean, logvar, gradient = jax.jit(encode)(params, pixels, cotangent)
  image = turned(torch, pixels).requires_grad_()
  posterior = theirs.encode(image).latent_dist
  (posterior.mean * turned(torch, cotangent)).sum().backward()
  assert relative_error(mean, back(posterior.mean)) < 1e-4
  assert relative_error(logvar, back(posterior.logvar)) < 1e-4
  assert relative_error(gradient, back(image.grad)) < 1e-3


@pytest.mark.full_size
@pytest.mark.timeout(3600)
def test_decoder(torch, pair, relative_error):
  theirs, ours, params = pair
  latents = np.random.default_rng(1).normal(size=(1, 16, 16, 4)).astype(np.float32)
  decoded = jax.jit(lambda params, z: ours.apply({"params": params}, z, method="decode"))(params, latents)
  with torch.no_grad():
    assert relative_error(decoded, back(theirs.decode(turned(torch, latents)).sample)) < 1e-4
