"""Our schedules against those of diffusers, which computes them in float32."""
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.parameterizations import eps_from_v, v_from_eps, x0_from_eps, x0_from_v
from sds_jax.diffusion.schedules import add_noise, schedule_from_config

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


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_alpha_bar(config, kind):
  theirs = getattr(diffusers, kind)(**config).alphas_cumprod.double().numpy()
  ours = schedule_from_config(config)
  np.testing.assert_allclose(np.asarray(ours.alpha, np.float64) ** 2, theirs, rtol=2e-4, atol=2e-6)
  np.testing.assert_allclose(np.asarray(ours.sigma, np.float64) ** 2, 1 - theirs, rtol=2e-4, atol=2e-6)


def test_a_saved_scheduler_config_is_read(tmp_path):
  import json
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
