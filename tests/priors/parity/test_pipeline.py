"""Four steps of DDIM through our Stable Diffusion and through diffusers' pipeline, on one folder and the same noise."""
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.ddim import ddim

TIMES, GUIDANCE = (999, 749, 499, 249), 7.5


@pytest.fixture(scope="module")
def pipeline(torch, diffusers, transformers, sd_folder):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
  pipe.set_progress_bar_config(disable=True)
  return pipe


def test_four_steps(torch, pipeline, sd_folder):
  prior, params = prior_lib.build(sd_folder)
  key, prompts, negative = jax.random.key(5), ["a red cube", "a blue cone"], "a cone"
  noise = np.asarray(jax.random.normal(key, (2, *prior.x_shape)))
  cond = prior.embed(prompts)
  uncond = dict(text=jnp.broadcast_to(prior.embed([negative])["text"], cond["text"].shape))
  whole = dataclasses.replace(prior, decode=lambda params, x: (x, prior.decode(params, x)))
  latents, images = jax.jit(lambda p, k: ddim(whole, p, cond, uncond, k, guidance_scale=GUIDANCE, times=TIMES))(
    params, key)
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")
    expected = pipeline(prompts, negative_prompt=[negative] * 2, num_inference_steps=4, guidance_scale=GUIDANCE,
                        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()), output_type="latent").images
    assert tuple(pipeline.scheduler.timesteps.tolist()) == TIMES
    decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
  expected, decoded = (array.numpy().transpose(0, 2, 3, 1) for array in (expected, decoded))
  assert np.linalg.norm(latents - expected) < 1e-3 * np.linalg.norm(expected)
  np.testing.assert_allclose(images, np.clip((decoded + 1) / 2, 0, 1), atol=2e-3)
  assert np.asarray(images).std() > 0.05
