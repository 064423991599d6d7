"""DDIM from pure noise (zero terminal SNR) against diffusers' scheduler, with a formula in place of the network."""
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.parameterizations import EPS_FROM
from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.priors.base import Prior
from sds_jax.priors.ddim import ddim
from sds_jax.priors.loading.source import Source

CONFIG = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
              rescale_betas_zero_snr=True)
SHAPE, STEPS = (4, 4, 3), 5


def output(z, cond):
  return 0.3 * z + cond - 0.1 * z**2


def zero_snr_prior(kind, with_predict=True):
  schedule = schedule_from_config(CONFIG)

  def predict(params, z, t, cond):
    return output(z, cond["text"])

  return Prior("formula", 4, SHAPE, None, schedule, kind, None, None, lambda params, x: x,
               lambda params, z, t, cond: EPS_FROM[kind](schedule, z, t, predict(params, z, t, cond)),
               Source("formula", None), predict=predict if with_predict else None)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_from_pure_noise(torch, diffusers, kind):
  key, scale = jax.random.key(0), 3.0
  cond, uncond = (dict(text=jnp.full((2, 1, 1, 1), value)) for value in (0.5, -0.2))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scheduler = diffusers.DDIMScheduler(**CONFIG, prediction_type=kind, clip_sample=False, set_alpha_to_one=True,
                                        timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    z = torch.from_numpy(np.array(jax.random.normal(key, (2, *SHAPE))))
    for t in scheduler.timesteps:
      both = output(z, -0.2) + scale * (output(z, 0.5) - output(z, -0.2))
      z = scheduler.step(both, t, z).prev_sample
  times = scheduler.timesteps.tolist()
  assert times[0] == 999 and scheduler.alphas_cumprod[-1] == 0
  got = ddim(zero_snr_prior(kind), None, cond, uncond, key, guidance_scale=scale, times=times)
  np.testing.assert_allclose(got, z.numpy(), atol=1e-4)


def test_noise_says_nothing_there():
  """eps predictions are refused from pure noise, in one line, and sampled below."""
  cond, key = dict(text=jnp.zeros((1, 1, 1, 1))), jax.random.key(0)
  for prior in (zero_snr_prior("epsilon"), zero_snr_prior("v_prediction", with_predict=False)):
    with pytest.raises(ValueError, match="pure noise at t = 999 .*distillation is defined at all t below 999") as error:
      jax.eval_shape(lambda k, prior=prior: ddim(prior, None, cond, None, k, STEPS), key)
    assert "\n" not in str(error.value)
    ddim(prior, None, cond, None, key, times=[998, 500])
