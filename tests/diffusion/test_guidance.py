import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.guidance import CONVENTIONS, cfg_diffusers, cfg_dreamfusion, guided, rescale

EPS_C, EPS_U = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(2, 3, 4, 5)))


def test_the_two_conventions():
  c, u = np.asarray(EPS_C, np.float64), np.asarray(EPS_U, np.float64)
  np.testing.assert_allclose(cfg_dreamfusion(EPS_C, EPS_U, 7.5), 8.5 * c - 7.5 * u, atol=1e-5)
  np.testing.assert_allclose(cfg_diffusers(EPS_C, EPS_U, 7.5), 7.5 * c - 6.5 * u, atol=1e-5)
  np.testing.assert_allclose(cfg_dreamfusion(EPS_C, EPS_U, 7.5), cfg_diffusers(EPS_C, EPS_U, 8.5), atol=1e-5)
  np.testing.assert_array_equal(cfg_dreamfusion(EPS_C, EPS_U, 0.0), EPS_C)
  np.testing.assert_allclose(cfg_diffusers(EPS_C, EPS_U, 1.0), EPS_C, atol=1e-6)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_scale_per_example_traced_and_half_precision(name):
  scales = jnp.array([0.0, 1.0, 20.0])
  actual = jax.jit(CONVENTIONS[name])(EPS_C, EPS_U, scales)
  for b in range(3):
    single = CONVENTIONS[name](EPS_C[b][None], EPS_U[b][None], float(scales[b]))[0]
    np.testing.assert_allclose(actual[b], single, atol=1e-5)
  half = CONVENTIONS[name](EPS_C.astype(jnp.bfloat16), EPS_U.astype(jnp.bfloat16), jnp.float32(3))
  assert half.dtype == jnp.bfloat16


def test_one_network_call_and_the_right_pairs():
  calls = []

  def denoise(params, z, t, cond):
    calls.append(z.shape)
    return params * z + t.astype(jnp.float32)[:, None] + cond["text"] + cond["camera"][:, :1]

  rng = np.random.default_rng(1)
  z, text_c, text_u, camera = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(4, 3, 2)))
  t = jnp.array([3, 5, 9])
  cond = dict(cond=dict(text=text_c, camera=camera), uncond=dict(text=text_u, camera=jnp.zeros_like(camera)))
  actual = guided(denoise, "dreamfusion", 4.0)(jnp.float32(2), z, t, cond)
  assert calls == [(6, 2)]
  eps_c = 2 * np.asarray(z) + np.asarray(t)[:, None] + np.asarray(text_c) + np.asarray(camera)[:, :1]
  eps_u = 2 * np.asarray(z) + np.asarray(t)[:, None] + np.asarray(text_u)
  np.testing.assert_allclose(actual, eps_c + 4 * (eps_c - eps_u), atol=1e-4)
  actual = guided(denoise, "diffusers", 4.0, rescale_phi=0.7)(jnp.float32(2), z, t, cond)
  wide = eps_u + 4 * (eps_c - eps_u)
  ratio = eps_c.std(1, keepdims=True) / wide.std(1, keepdims=True)
  np.testing.assert_allclose(actual, 0.7 * wide * ratio + 0.3 * wide, atol=1e-4)


def test_rescale():
  wide = 5 * EPS_C + 1
  spread = np.asarray(rescale(wide, EPS_C, 1.0)).std((1, 2))
  np.testing.assert_allclose(spread, np.asarray(EPS_C).std((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(rescale(wide, EPS_C, 0.0), wide, rtol=1e-6)


def test_errors_name_the_legal_values():
  with pytest.raises(ValueError, match="'ho'.*dreamfusion, diffusers"):
    guided(lambda *a: a[1], "ho", 1.0)
  denoise = guided(lambda params, z, t, cond: z, "diffusers", 1.0)
  z, t = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)
  with pytest.raises(ValueError, match="found .'text'.$"):
    denoise(None, z, t, dict(text=z))
  with pytest.raises(ValueError, match="same structure"):
    denoise(None, z, t, dict(cond=z, uncond=z[:1]))
