"""Our schedules against those of diffusers, which computes them in float32."""
import json
from pathlib import Path
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import sds_jax
from sds_jax.diffusion.parameterizations import eps_from_v, v_from_eps, x0_from_eps, x0_from_v
from sds_jax.diffusion.schedules import add_noise, prediction_type_from_config, schedule_from_config

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  diffusers = pytest.importorskip("diffusers")

CONFIGS = [
  dict(beta_schedule="linear"),
  dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
  dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=300),
  dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True),
  dict(trained_betas=[0.01, 0.02, 0.3, 0.4], num_train_timesteps=4),
]


LATENT = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
              clip_sample=False, set_alpha_to_one=False, steps_offset=1, trained_betas=None)
PUBLISHED = {  # scheduler_config.json; sd15 (of 1.4) and sd21-base are those of copies, the others are from memory
  "sd15": LATENT | dict(_class_name="PNDMScheduler", _diffusers_version="0.6.0", skip_prk_steps=True),
  "sd21-base": LATENT | dict(_class_name="PNDMScheduler", _diffusers_version="0.10.0.dev0", skip_prk_steps=True,
                             prediction_type="epsilon"),
  "sd21": LATENT | dict(_class_name="DDIMScheduler", _diffusers_version="0.8.0", skip_prk_steps=True,
                        prediction_type="v_prediction"),
  "if": dict(_class_name="DDPMScheduler", _diffusers_version="0.16.0.dev0", beta_start=0.0001, beta_end=0.02,
             beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=1.0, num_train_timesteps=1000,
             dynamic_thresholding_ratio=0.95, prediction_type="epsilon", sample_max_value=1.5, thresholding=True,
             trained_betas=None, variance_type="learned_range"),
}


@pytest.mark.parametrize("name", [*PUBLISHED, "shapeworld"])
def test_published_schedulers(name):
  """alpha_t and sigma_t of the class that the file itself names; also with what is left out of it."""
  path = Path(sds_jax.__file__).parent / "shapeworld" / "prior" / "scheduler" / "scheduler_config.json"
  config = PUBLISHED.get(name) or json.loads(path.read_text())
  theirs = getattr(diffusers, config["_class_name"]).from_config(config).alphas_cumprod.double().numpy()
  ours = schedule_from_config(config)
  np.testing.assert_allclose(ours.alpha, np.sqrt(theirs), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(ours.sigma, np.sqrt(1 - theirs), rtol=1e-4, atol=3e-6)  # theirs is 1 - x in float32
  assert prediction_type_from_config(config) == config.get("prediction_type", "epsilon")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_alpha_bar(config, kind):
  theirs = getattr(diffusers, kind)(**config).alphas_cumprod.double().numpy()
  ours = schedule_from_config(config)
  np.testing.assert_allclose(np.asarray(ours.alpha, np.float64) ** 2, theirs, rtol=2e-4, atol=2e-6)
  np.testing.assert_allclose(np.asarray(ours.sigma, np.float64) ** 2, 1 - theirs, rtol=2e-4, atol=2e-6)


def test_a_saved_scheduler_config_is_read(tmp_path):
  diffusers.DDIMScheduler(**CONFIGS[1], prediction_type="v_prediction").save_pretrained(tmp_path)
  config = json.loads((tmp_path / "scheduler_config.json").read_text())
  np.testing.assert_array_equal(schedule_from_config(config).alpha, schedule_from_config(CONFIGS[1]).alpha)


def test_add_noise_and_velocity():
  theirs = diffusers.DDPMScheduler(**CONFIGS[1])
  ours = schedule_from_config(CONFIGS[1])
  rng = np.random.default_rng(0)
  x, eps = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  t = np.array([3, 400, 998])
  torch_args = torch.from_numpy(x), torch.from_numpy(eps), torch.from_numpy(t)
  z = add_noise(ours, jnp.asarray(x), jnp.asarray(eps), jnp.asarray(t))
  np.testing.assert_allclose(z, theirs.add_noise(*torch_args).numpy(), atol=1e-5)
  v = theirs.get_velocity(*torch_args).numpy()
  np.testing.assert_allclose(v_from_eps(ours, z, jnp.asarray(t), jnp.asarray(eps)), v, atol=1e-4)
  np.testing.assert_allclose(eps_from_v(ours, z, jnp.asarray(t), jnp.asarray(v)), eps, atol=1e-5)


@pytest.mark.parametrize("kind, ours", [("epsilon", x0_from_eps), ("v_prediction", x0_from_v)])
def test_clean_image_of_a_prediction(kind, ours):
  theirs = diffusers.DDPMScheduler(**CONFIGS[1], prediction_type=kind, clip_sample=False)
  schedule = schedule_from_config(CONFIGS[1])
  rng = np.random.default_rng(1)
  z, prediction = rng.normal(size=(2, 1, 6)).astype(np.float32)
  for t in (20, 500, 980):
    expected = theirs.step(torch.from_numpy(prediction), t, torch.from_numpy(z)).pred_original_sample.numpy()
    np.testing.assert_allclose(ours(schedule, jnp.asarray(z), jnp.array([t]), jnp.asarray(prediction)), expected,
                               rtol=1e-4, atol=1e-5)
