"""TAESD in place of a prior's autoencoder: folders, files, names and hub ids, and what does not fit."""
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors import prior as prior_lib, spaces
from sds_jax.priors.loading import checkpoint, component_hub, names
from sds_jax.priors.loading import hub as hub_lib
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.autoencoders import Autoencoder
from sds_jax.priors.networks.tiny_vae import AutoencoderTiny

FILE = "diffusion_pytorch_model.safetensors"
TINY = dict(_class_name="AutoencoderTiny", encoder_block_out_channels=[4, 4], decoder_block_out_channels=[4, 4],
            num_encoder_blocks=[1, 1], num_decoder_blocks=[1, 1])


@pytest.fixture(scope="module")
def tiny(random_params, tmp_path_factory):
  """(folder, parameters) of a TAESD that halves images."""
  folder = tmp_path_factory.mktemp("tiny") / "taesd"
  params = random_params(Autoencoder.from_config(TINY))
  checkpoint.write_component(folder, "vae", TINY, params, dtype=jnp.float32)
  return folder, params


@pytest.mark.parametrize("change, message", [
  (dict(encoder_block_out_channels=[4, 8]), r"encoder_block_out_channels=\[4, 8\] is not supported; supported: one"),
  (dict(num_decoder_blocks=[1]), r"num_decoder_blocks=\[1\] are not supported; supported: 2 values each"),
  (dict(upsampling_scaling_factor=4), "upsampling_scaling_factor=4 is not supported; supported: 2"),
  (dict(num_encoder_blocks=[64, 64]), r"makes \d+ layers; supported: at most 256"),
  (dict(act_fn="quick_gelu"), "act_fn='quick_gelu' is not supported"), (dict(new=1), "new=1 is not a known option")])
def test_config_is_refused(change, message):
  with pytest.raises(ValueError, match="AutoencoderTiny config: .*" + message):
    AutoencoderTiny.from_config(TINY | change)


def test_a_folder_or_a_file_takes_the_place_of_the_autoencoder(sd_folder, tiny, quick_jit):
  for place in (tiny[0], tiny[0] / FILE):
    prior, params = prior_lib.build(sd_folder, vae=str(place))
    jax.tree.map(np.testing.assert_array_equal, params["vae"], tiny[1])
  assert (prior.image_size, prior.x_shape) == (16, (8, 8, 4)) and "in place of the prior's own" in " ".join(prior.notes)
  image = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 16, 16, 3)), jnp.float32)
  vae = Autoencoder.from_config(TINY)

  def everything(params, image):
    expected = vae.apply({"params": params["vae"]}, 2 * image - 1, method="encode")
    condition = spaces.latent_space(vae, 8).condition(params, image)
    draws = [prior.encode(params, image, jax.random.key(seed)) for seed in (0, 1)]
    return expected, condition, *draws, prior.decode(params, expected)

  expected, condition, one, other, decoded = quick_jit(everything, params, image)
  np.testing.assert_array_equal(one, other)  # no draw
  np.testing.assert_allclose(one, expected, atol=1e-6)  # and no scale
  np.testing.assert_allclose(condition, expected / 0.18215, rtol=1e-5)
  assert decoded.shape == image.shape and 0 <= float(decoded.min()) and float(decoded.max()) <= 1


def test_a_file_alone_has_the_published_shapes(sd_folder, tmp_path):
  shapes = {names.checkpoint_name(path, names.VAE): names.checkpoint_shape(path, leaf.shape)
            for path, leaf in checkpoint.abstract_params(AutoencoderTiny()).items()}
  assert len(shapes) == 134 and sum(map(math.prod, shapes.values())) == 2_445_063
  save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, tmp_path / "taesd.safetensors")
  prior, weights = prior_lib.open_prior(sd_folder, vae=str(tmp_path / "taesd.safetensors"))
  assert weights.networks["vae"] == AutoencoderTiny() and prior.image_size == 64


def test_names_and_hub_ids_are_fetched(sd_folder, tiny, tmp_path, monkeypatch):
  fetched = []

  def fetch(repo, revision, files):
    snapshot = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in files:
      shutil.copy(tiny[0] / name, snapshot / name)
    fetched.append(repo)
    return snapshot

  hub = hub_lib.Hub(tmp_path, lambda repo, revision: ["config.json", FILE, "taesd_encoder.safetensors"], fetch)
  monkeypatch.setattr(component_hub.hub_lib, "default_hub", lambda: hub)
  for name, repo in (("taesd", "madebyollin/taesd"), ("somebody/tiny", "somebody/tiny")):
    _, weights = prior_lib.open_prior(sd_folder, vae=name)
    assert isinstance(weights.networks["vae"], AutoencoderTiny) and fetched[-1] == repo
  count = len(fetched)
  prior_lib.open_prior(sd_folder, vae="taesd")
  assert len(fetched) == count  # from the cache
  with pytest.raises(CheckpointError, match="prior.vae='taesdxl' does not fit the prior, whose latents .* 'taesd'"):
    prior_lib.open_prior(sd_folder, vae="taesdxl")


def test_a_prior_of_pixels_has_no_autoencoder(prior_folder, tiny):
  with pytest.raises(CheckpointError, match="config.prior.vae=.* replaces a network that the prior lacks: .*vae"):
    prior_lib.open_prior(prior_folder, vae=str(tiny[0]))
