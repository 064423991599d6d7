"""The comparison of TAESD's encoder with the autoencoder's: work and directions, on tiny networks."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.benchmarks import flops, tiny_vae
from sds_jax.priors.base import network_shapes
from sds_jax.priors.loading.random_weights import random_params
from sds_jax.priors.networks.autoencoders import Autoencoder
from sds_jax.priors.spaces import latent_space

KL = dict(block_out_channels=[4, 8], down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=4,
          up_block_types=["UpDecoderBlock2D"] * 2)
TINY = dict(_class_name="AutoencoderTiny", encoder_block_out_channels=[4, 4], decoder_block_out_channels=[4, 4],
            num_encoder_blocks=[1, 1], num_decoder_blocks=[1, 1])


def test_work_is_that_of_the_convolutions():
  vae = Autoencoder.from_config(TINY)
  space, params = latent_space(vae, 8), {"vae": network_shapes(vae, jnp.float32)}
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  counted = flops.count(lambda p, x: space.encode(p, x, None), params, image)
  work = tiny_vae.encoder_flops(TINY, 16)
  # XLA leaves out the padding of borders and counts the activations, too.
  assert 0.7 * counted < work["forward"] < 1.3 * counted and 1.7 < work["gradient"] / work["forward"] < 2.5


def test_cosines_of_equal_and_of_unrelated_encoders():
  vae = Autoencoder.from_config(TINY)
  space = latent_space(vae, 8)
  a, b = ({"vae": random_params(network_shapes(vae, jnp.float32), seed)} for seed in (0, 1))
  image = jnp.asarray(tiny_vae.images(16)["structured"])
  cotangent = jnp.asarray(np.random.default_rng(0).normal(size=(1, *space.x_shape)), jnp.float32)
  same = tiny_vae.cosines((space, space), (a, a), image, cotangent)
  other = tiny_vae.cosines((space, space), (a, b), image, cotangent)
  assert set(same) == {"16 px", "64 px"} and all(abs(value - 1) < 1e-6 for value in same.values())
  assert all(abs(value) < 0.9 for value in other.values())


def test_command(monkeypatch, capsys):
  monkeypatch.setattr(tiny_vae, "SD_VAE", KL)
  monkeypatch.setattr(tiny_vae, "TINY", TINY)
  tiny_vae.main(["--size=16"])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and lines[0].startswith("forward: AutoencoderKL ") and "times less" in lines[1]
  assert lines[2].startswith("random image, cotangent white noise: cosine ")
  with pytest.raises(SystemExit):
    tiny_vae.main(["--prior=sd15"])
  assert "give --prior=NAME and --tiny=FOLDER together" in capsys.readouterr().err
