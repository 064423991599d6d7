"""DDIM on a denoiser with a known solution, and the command."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sds_jax.priors import prior as prior_lib, sample
from sds_jax.priors.ddim import ddim


@pytest.fixture(scope="module")
def built(prior_folder):
  return prior_lib.build(prior_folder)


def gaussian_prior(prior):
  """x0 ~ N(m, s^2): E[eps | z] = sigma (z - alpha m) / (alpha^2 s^2 + sigma^2); m: cond["text"], s: params."""
  def denoise(params, z, t, cond):
    alpha, sigma = (a[t][:, None, None, None] for a in (prior.schedule.alpha, prior.schedule.sigma))
    return sigma * (z - alpha * cond["text"]) / (alpha**2 * params**2 + sigma**2)
  return dataclasses.replace(prior, denoise=denoise, decode=lambda params, x: x)


@pytest.mark.parametrize("scale", [1., 3.])
def test_ddim_against_a_loop(built, quick_jit, scale):
  prior, key, steps, spread = gaussian_prior(built[0]), jax.random.key(0), 7, 0.5
  mean_c, mean_u = 0.5 * np.ones((2, 1, 1, 1), np.float32), -0.25 * np.ones((2, 1, 1, 1), np.float32)
  z = np.asarray(jax.random.normal(key, (2, 4, 4, 12)), np.float64)
  alpha, sigma = (np.asarray(a, np.float64) for a in (prior.schedule.alpha, prior.schedule.sigma))
  times = [49, 42, 35, 28, 21, 14, 7]
  for i, t in enumerate(times):
    eps = [sigma[t] * (z - alpha[t] * mean) / (alpha[t]**2 * spread**2 + sigma[t]**2) for mean in (mean_u, mean_c)]
    eps = eps[0] + scale * (eps[1] - eps[0])
    x0 = np.clip((z - sigma[t] * eps) / alpha[t], -1, 1)
    eps = (z - alpha[t] * x0) / sigma[t]
    z = x0 if i == steps - 1 else alpha[times[i + 1]] * x0 + sigma[times[i + 1]] * eps
  cond, uncond = dict(text=jnp.asarray(mean_c)), dict(text=jnp.asarray(mean_u))
  got = quick_jit(lambda key: ddim(prior, jnp.float32(spread), cond, uncond, key, steps, scale), key)
  np.testing.assert_allclose(got, z, atol=2e-3)
  if scale == 1.:
    alone = quick_jit(lambda key: ddim(prior, jnp.float32(spread), cond, None, key, steps), key)
    np.testing.assert_allclose(alone, got, atol=1e-4)


def test_ddim_draws_the_distribution(built, quick_jit):
  prior, cond = gaussian_prior(built[0]), dict(text=jnp.full((64, 1, 1, 1), 0.2))
  x = quick_jit(lambda key: ddim(prior, jnp.float32(0.3), cond, None, key, 50, clip=False), jax.random.key(0))
  assert abs(float(x.mean()) - 0.2) < 0.01
  assert abs(float(x.std()) - 0.3) < 0.02


def test_steps_are_checked(built):
  with pytest.raises(ValueError, match="steps=51 should be from 1 to 50"):
    ddim(*built, dict(text=jnp.zeros((1, 8, 12))), None, jax.random.key(0), 51)


def test_command(built, tmp_path, capsys, monkeypatch):
  prior, params = built
  def denoise(params, z, t, cond):  # the network takes long to compile
    return z * cond["text"].mean()
  monkeypatch.setattr(sample, "build", lambda name, **options: (dataclasses.replace(prior, denoise=denoise), params))
  arguments = [f"--out={tmp_path / 'x.png'}", "--steps=2", "--num=3"]
  sample.main([*arguments, "--prompt=a red cube"])
  with Image.open(tmp_path / "x.png") as image:
    assert image.size == (24, 8)
  with pytest.raises(SystemExit):
    sample.main([*arguments, "--prompt=a red dog"])
  out, err = capsys.readouterr()
  assert f"the images lie in {tmp_path / 'x.png'}\n" in out
  assert "error: the prior doesn't know 'dog' in 'a red dog'" in err


@pytest.mark.parametrize("argument, words", [
  ("--num=0", "--num=0 must be at least 1"),
  ("--seed=99999999999999999999", "must be from 0 to 2^32 - 1"),
  ("--out=/tmp", "--out=/tmp: it must be a file in a folder"),
  ("--out=/nowhere/x.png", "--out=/nowhere/x.png: it must be a file in a folder that exists")])
def test_mistakes_end_the_command_before_any_work(monkeypatch, capsys, argument, words):
  monkeypatch.setattr(sample, "build", None)
  with pytest.raises(SystemExit):
    sample.main(["--prompt=a red cube", argument])
  assert words in capsys.readouterr().err
