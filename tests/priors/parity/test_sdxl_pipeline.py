"""Four steps of DDIM through our Stable Diffusion XL and through diffusers' pipeline, on one folder and one noise."""
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.base import Options, SizeConditions
from sds_jax.priors.ddim import ddim
from sds_jax.priors.families import open_folder
from sds_jax.priors.loading.source import Source

TIMES, GUIDANCE = (999, 749, 499, 249), 7.5
SIZES = SizeConditions(original_size=(1024, 768), crop=(16, 0))
PROMPTS = ["a red cube", "a blue cone"]


@pytest.fixture(scope="module")
def pipeline(torch, diffusers, transformers, sdxl_folder):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
  pipe.set_progress_bar_config(disable=True)
  return pipe


@pytest.fixture(scope="module")
def prior(sdxl_folder):
  return open_folder(Source("tiny", sdxl_folder), Options(sizes=SIZES))[0]


def test_embeddings(torch, pipeline, prior):
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")
    text, empty, pooled, empty_pooled = pipeline.encode_prompt(PROMPTS, negative_prompt=None)
  ours = prior.embed([*PROMPTS, "", ""])
  np.testing.assert_allclose(ours["text"], torch.cat([text, empty]).numpy(), atol=2e-5)
  np.testing.assert_allclose(ours["pooled"], torch.cat([pooled, empty_pooled]).numpy(), atol=2e-5)


@pytest.mark.parametrize("negative", ["", "a cone"])
def test_four_steps(torch, pipeline, prior, sdxl_folder, negative):
  _, params = prior_lib.build(sdxl_folder)
  key = jax.random.key(5)
  noise = np.asarray(jax.random.normal(key, (2, *prior.x_shape)))
  cond = prior.embed(PROMPTS)
  uncond = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), prior.embed([negative]), cond)
  whole = dataclasses.replace(prior, decode=lambda params, x: (x, prior.decode(params, x)))
  latents, images = jax.jit(lambda p, k: ddim(whole, p, cond, uncond, k, guidance_scale=GUIDANCE, times=TIMES))(
    params, key)
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")
    # An empty negative prompt is diffusers' None, for which the folder asks for zeros.
    expected = pipeline(PROMPTS, negative_prompt=[negative] * 2 if negative else None, num_inference_steps=4,
                        guidance_scale=GUIDANCE, original_size=SIZES.original_size, crops_coords_top_left=SIZES.crop,
                        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()), output_type="latent").images
    assert tuple(pipeline.scheduler.timesteps.tolist()) == TIMES
    decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
  expected, decoded = (array.numpy().transpose(0, 2, 3, 1) for array in (expected, decoded))
  assert np.linalg.norm(latents - expected) < 1e-3 * np.linalg.norm(expected)
  np.testing.assert_allclose(images, np.clip((decoded + 1) / 2, 0, 1), atol=2e-3)
  assert np.asarray(images).std() > 0.02
