"""The size of a latent prior's images: of its files where they are right, of its family where they are known to err."""
import json
import shutil

import pytest

from sds_jax.priors import latent_size, prior as prior_lib
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.networks.vae import AutoencoderKL

V = dict(prediction_type="v_prediction")


def networks(sample_size, vae_size=512, linear=False, blocks=4):
  """Networks with the blocks of Stable Diffusion; nothing is traced."""
  unet = UNet2DConditionModel(sample_size=sample_size, use_linear_projection=linear)
  return unet, AutoencoderKL(sample_size=vae_size, block_out_channels=(8,) * blocks)


@pytest.mark.parametrize("unet_size, vae_size, linear, scheduler, expected", [
  (64, 512, False, {}, 64), (64, 768, True, {}, 64), (96, 768, True, V, 96), ([64, 64], 512, False, {}, 64),
  (32, 256, False, {}, 64),  # the published folder of test_published_configs.py
  (32, 512, False, {}, 64), ((32, 32), 256, False, {}, 64), (32, 768, True, V, 96), (32, 256, True, V, 96),
  (32, 256, True, {}, 64), (32, [256, 256], False, V, 64),
  (48, 256, False, {}, 48),  # no size of the conversion script
  (None, 512, False, {}, 64), (None, 256, True, V, 96)])
def test_sizes_of_stable_diffusion(unet_size, vae_size, linear, scheduler, expected, tmp_path):
  unet, vae = networks(unet_size, vae_size, linear)
  size, notes = latent_size.stable_diffusion_size(tmp_path, unet, vae, scheduler)
  assert size == expected
  stored = unet_size[0] if isinstance(unet_size, (list, tuple)) else unet_size
  assert len(notes) == (stored != expected)  # a size that is not the file's is explained
  assert not notes or f"images of {8 * expected}x{8 * expected} pixels" in notes[0] and "\n" not in notes[0]


def test_other_sizes_of_latents_are_taken_as_they_are(tmp_path):
  """A VAE of another factor is none of a Stable Diffusion conversion."""
  assert latent_size.stable_diffusion_size(tmp_path, *networks(32, 64, blocks=2), {}) == (32, ())
  assert latent_size.chosen_size(tmp_path, *networks(32, 256)) == (32, ())  # as Zero-1-to-3 has it


def test_the_size_of_a_vae_counts_only_where_it_decides(tmp_path):
  assert latent_size.stable_diffusion_size(tmp_path, *networks(64, (512, 768)), {}) == (64, ())
  with pytest.raises(CheckpointError, match="vae/config.json: sample_size=.* that integer twice"):
    latent_size.stable_diffusion_size(tmp_path, *networks(32, (512, 768)), {})


def test_the_callers_size(tmp_path):
  size, notes = latent_size.stable_diffusion_size(tmp_path, *networks(32, 256), {}, 256)
  assert size == 32 and notes == ("images of 256x256 pixels, as config.prior.image_size says; the prior's own are 256",)
  assert latent_size.chosen_size(tmp_path, *networks(None), 768)[0] == 96
  for wrong in (100, 8, 16384):
    with pytest.raises(CheckpointError, match=f"config.prior.image_size={wrong} .* a multiple of 64, at most 8192"):
      latent_size.chosen_size(tmp_path, *networks(64), wrong)


@pytest.mark.parametrize("value", [(64, 32), 0, (1, 2, 3)])
def test_sizes_that_are_no_square(value, tmp_path):
  with pytest.raises(CheckpointError, match="unet/config.json: sample_size=.* positive integer"):
    latent_size.chosen_size(tmp_path, *networks(value))


@pytest.mark.parametrize("network", ["unet", "vae"])
@pytest.mark.parametrize("value", ["32", -1, 0, 1e9, 10**9, [64], [64, 64, 64], True, {"a": 1}])
def test_hostile_sizes(sd_folder, tmp_path, network, value):
  shutil.copytree(sd_folder, tmp_path / "prior")
  path = tmp_path / "prior" / network / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(sample_size=value)))
  try:
    prior_lib.open_prior(tmp_path / "prior")
  except CheckpointError as error:
    assert f"{network}/config.json" in str(error) and "sample_size" in str(error) and "\n" not in str(error)
  else:  # the VAE's size has no effect where the U-Net has one
    assert network == "vae" and value in ([64], [64, 64, 64])


def test_a_folder_is_opened_at_another_size(sd_folder, tmp_path):
  prior, _ = prior_lib.open_prior(sd_folder, image_size=32)
  assert (prior.image_size, prior.x_shape) == (32, (16, 16, 4)) and "the prior's own are 16" in prior.notes[0]
  for path in sd_folder.iterdir():
    if path.name != "unet":
      (tmp_path / path.name).symlink_to(path)
  (tmp_path / "unet").mkdir()
  config = json.loads((sd_folder / "unet" / "config.json").read_text())
  config.pop("sample_size")
  (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
  weights = "diffusion_pytorch_model.safetensors"
  (tmp_path / "unet" / weights).symlink_to(sd_folder / "unet" / weights)
  prior, _ = prior_lib.open_prior(tmp_path)
  assert prior.image_size == 16 and "no sample_size" in prior.notes[0]


def test_a_prior_of_pixels_has_one_size(prior_folder):
  with pytest.raises(CheckpointError, match="image_size=16 has no effect .* ShapeWorld whose images have 8x8 pixels"):
    prior_lib.open_prior(prior_folder, image_size=16)
  assert prior_lib.open_prior(prior_folder, image_size=8)[0].image_size == 8


def test_random_weights_have_the_callers_size(tiny_published):
  prior, _ = prior_lib.open_prior("sd15", random_weights=True, image_size=32)
  assert (prior.image_size, prior.x_shape) == (32, (16, 16, 4))
  with pytest.raises(CheckpointError, match="image_size=32 has no effect on the prior 'if-m'"):
    prior_lib.open_prior("if-m", random_weights=True, image_size=32)
