"""Groups of views that a network looks at together: unmixed by guidance, one t each, one factor of rescaling each."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import timesteps
from sds_jax.diffusion.estimators import ESTIMATORS, Moment
from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.guidance import guided, predictions, rescale
from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.diffusion.variational import score_loss

SCHEDULE = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
SHAPE = (8, 3, 3, 2)
COND = {side: dict(mean=jnp.full(SHAPE, value)) for side, value in (("cond", 1.0), ("uncond", -1.0), ("negative", 0.5))}


def over_group(params, z, t, cond):
  """A network whose prediction is the mean of its group, plus the condition; NaN where the group's t differ."""
  groups = z.reshape(-1, 4, *z.shape[1:])
  mean = jnp.repeat(groups.mean(1), 4, axis=0)
  same = jnp.repeat((t.reshape(-1, 4) == t.reshape(-1, 4)[:, :1]).all(1), 4)
  return jnp.where(same[:, None, None, None], mean + cond["mean"], jnp.nan)


def test_guidance_keeps_groups_together_and_conditions_apart():
  z, t = jax.random.normal(jax.random.key(0), SHAPE), jnp.repeat(jnp.array([100, 700]), 4)
  eps = jax.jit(lambda z: predictions(over_group, None, z, t, COND, group=4))(z)
  mean = np.repeat(np.asarray(z).reshape(2, 4, 3, 3, 2).mean(1), 4, axis=0)
  for name, value in (("unsteered", 1.0), ("uncond", -1.0), ("negative", 0.5)):
    np.testing.assert_allclose(eps[name], mean + value, atol=1e-6)
  with pytest.raises(ValueError, match="there are 6 examples, but the network looks at 4 views of an object together"):
    predictions(over_group, None, z[:6], t[:6], jax.tree.map(lambda leaf: leaf[:6], COND), group=4)


def slow_rescale(guided_eps, eps_c, phi, group):
  out = np.empty_like(guided_eps)
  for first in range(0, len(eps_c), group):
    views = range(first, first + group)
    factor = np.std([eps_c[v] for v in views]) / np.std([guided_eps[v] for v in views])
    for view in views:
      out[view] = phi * factor * guided_eps[view] + (1 - phi) * guided_eps[view]
  return out


@pytest.mark.parametrize("group", [1, 2, 4])
def test_rescaling_over_a_group_is_a_slow_loop(group):
  rng = np.random.default_rng(0)
  guided_eps, eps_c = (scale * rng.normal(size=SHAPE) * (1 + np.arange(8))[:, None, None, None] for scale in (7, 1))
  got = rescale(jnp.float32(guided_eps), jnp.float32(eps_c), 0.5, group)
  np.testing.assert_allclose(got, slow_rescale(guided_eps, eps_c, 0.5, group), rtol=1e-4)


def test_the_published_reconstruction_loss():
  """The gradient of MVDream's loss, |x - x0|^2 / 2 summed over an example and averaged over the batch, by its code."""
  x, eps = (jax.random.normal(jax.random.key(i), SHAPE) for i in (1, 2))
  t, scale = jnp.repeat(jnp.array([300, 800]), 4), 50.0
  denoise = guided(lambda p, z, t, cond: jnp.tanh(z) + 0.1 * cond["mean"], "diffusers", scale, rescale_phi=0.5, group=4,
                   x0_schedule=SCHEDULE)
  cond = {side: COND[side] for side in ("cond", "uncond")}
  loss = lambda x: score_distillation(  # noqa: E731
      denoise, None, SCHEDULE, x, jax.random.key(3), cond, t=t, weighting="sigma_over_alpha")
  gradient, aux = jax.jit(jax.grad(loss, has_aux=True))(x)
  alpha, sigma = (np.asarray(a, np.float64)[np.asarray(t)][:, None, None, None]
                  for a in (SCHEDULE.alpha, SCHEDULE.sigma))
  x, eps = np.asarray(x, np.float64), np.asarray(aux.eps, np.float64)
  z = alpha * x + sigma * eps
  text, empty = np.tanh(z) + 0.1, np.tanh(z) - 0.1
  x0_text, x0 = ((z - sigma * e) / alpha for e in (text, empty + scale * (text - empty)))
  x0 = slow_rescale(x0, x0_text, 0.5, 4)
  np.testing.assert_allclose(gradient, (x - x0) / 8, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(aux.x0_hat, x0, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", timesteps.SAMPLERS)
def test_groups_share_t_on_any_number_of_devices(name):
  index = jnp.arange(16)
  draw = lambda index: timesteps.SAMPLERS[name](jax.random.key(0), index // 4, (0.0, 1.0), 1000, 4)  # noqa: E731
  t = draw(index)
  assert all(len(set(group)) == 1 for group in np.asarray(t).reshape(4, 4)) and len(set(np.asarray(t))) == 4
  np.testing.assert_array_equal(draw(index[8:12]), t[8:12])


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("ldiff",)])
def test_every_estimator_gives_a_group_one_t(name):
  """The network gives NaN where the views of a group differ in t."""
  record = ESTIMATORS[name]
  x, denoise = jnp.zeros(SHAPE), guided(over_group, "diffusers", 3.0, group=4)
  inputs = dict(source_x=x, source_cond=COND, score_fn=over_group, score_params=None, score_cond=COND["cond"],
                image=jnp.zeros((8, 4, 4, 3)))
  moment = Moment(prediction_type="epsilon", schedule=SCHEDULE, inputs=inputs, decode=lambda x: x)
  cond = COND if "negative" in record.needs else {side: COND[side] for side in ("cond", "uncond")}
  inputs["source_cond"] = cond
  few = {"sdi": dict(steps=2), "ism": dict(steps=2)}.get(name, {})

  def run(key):
    return score_distillation(denoise, None, SCHEDULE, x, key, cond, estimator=record.fn, weighting="sigma2",
                              options=record.keywords(record.options(**few), moment))[1]

  aux = jax.jit(run)(jax.random.key(0))
  t = np.asarray(aux.t).reshape(2, 4)
  assert np.isfinite(aux.grad_norm).all() and (t == t[:, :1]).all() and t[0, 0] != t[1, 0]


def test_the_second_network_learns_with_one_t_a_group():
  def error_of_t(params, z, t, cond):
    return params * jnp.where((t.reshape(-1, 4) == t.reshape(-1, 4)[:, :1]).all(), z, jnp.nan)

  assert np.isfinite(score_loss(error_of_t, 1.0, SCHEDULE, jnp.zeros(SHAPE), jax.random.key(0), None, group=4))
