"""Tests `distil`: the keys, times, scales and conditions that reach the estimator and VSD's second network."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import find
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.diffusion.variational import score_loss
from sds_jax.settings import validate
from sds_jax.training import distil, estimator_state, second_network
from sds_jax.training.keys import step_keys
from sds_jax.views.cameras import CAMERA_DIM

B, WIDTH = 4, 3
PROGRESS = 0.25
RANGE = {"distillation.t_min": ((0.0, 0.6), (1.0, 0.2)), "distillation.t_max": 0.9, "distillation.t_warp": "sqrt",
         "distillation.weighting": "uniform", "distillation.guidance_scale": 4.0,
         "distillation.guidance_convention": "diffusers"}
LOWER = 0.4
"""Lower end of the range of t at PROGRESS: the square root of a quarter is half of the way from 0.6 to 0.2."""
KEYS = step_keys(jax.random.key(3), jnp.int32(5))


def denoise(params, z, t, cond):
  condition = cond["text"].mean(1) + (cond["camera"][:, :WIDTH] if "camera" in cond else 0.0)
  return jnp.tanh(z + condition + (t.astype(jnp.float32) / 1000)[:, None]) @ params["unet"]["to_q"]["kernel"]


PRIOR = types.SimpleNamespace(denoise=denoise, schedule=schedule_from_config({}), camera_dim=0, views=1,
                              prediction_type="epsilon")
"""The attributes of a prior that `distil` reads; no cameras."""


@pytest.fixture(scope="module")
def inputs():
  """Returns x [B, WIDTH], the prior's parameters, cond, and features of the views' cameras."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  cond = {side: dict(text=array(B, 2, WIDTH)) for side in ("cond", "uncond", "negative")}
  return array(B, WIDTH), dict(unet=dict(to_q=dict(kernel=array(WIDTH, WIDTH)))), cond, array(B, CAMERA_DIM)


@pytest.fixture(scope="module")
def run(tiny_config, inputs):
  """Returns a function (changes, further inputs) -> (gradients with respect to x and phi, aux)."""
  x, params, cond, _ = inputs

  def of(changes, **extra):
    settings = {**RANGE, "training.views": B, **changes}
    if changes.get("distillation.estimator") == "csd":
      del settings["distillation.guidance_scale"]  # has no effect on CSD
    config = validate(tiny_config(settings))

    def loss(x, phi):
      return distil.distil(config.distillation, config.loss.sds, PRIOR, params, x, cond, KEYS, jnp.float32(PROGRESS),
                           dict(extra, score=phi), views=B, seed=config.seed)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, extra.get("score", {}))

  return of


@pytest.fixture(scope="module")
def by_hand(inputs):
  """Returns a function (estimator, t, options, scale, convention) -> the gradient with respect to x."""
  x, params, cond, _ = inputs

  def of(name, t, options, scale=4.0, convention="diffusers"):
    def loss(x):
      return score_distillation(guided(denoise, convention, scale), params, PRIOR.schedule, x, KEYS["distil"], cond,
                                t=t, weighting="uniform", estimator=name, options=options)[0]
    return jax.jit(jax.grad(loss))(x)

  return of


def assert_only(grad, expected, other):
  """Checks that `grad` equals `expected`, and that `expected` differs from `other`, the result of a mistake."""
  np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)
  assert np.abs(np.asarray(expected) - np.asarray(other)).max() > 1e-3


OPTIONS = {
    "sds": {}, "score": {}, "sjc": {}, "rfds": {}, "ldiff": {}, "csd": dict(negative_weight=0.5),
    "nfsd": dict(null_until=0.2), "bridge": dict(bridged=0.0), "dds": {}, "pds": {},
    "ism": dict(delta_t=0.1 - 0.02 * PROGRESS / 0.3, delta_s=0.2, steps=5, start=0.0)}
"""Estimators without a separate test below -> their options at PROGRESS, besides a source."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_each_estimator_at_this_progress(run, by_hand, inputs, name):
  source = dict(source_x=0.5 * inputs[0], source_cond=dict(inputs[2], cond=inputs[2]["negative"]))
  source = source if "source" in find(name).needs else {}
  (grad, _), aux = run({"distillation.estimator": name}, **source)
  np.testing.assert_allclose(grad, by_hand(name, aux.t, {**OPTIONS[name], **source}), rtol=1e-4, atol=1e-6)
  assert np.abs(grad).max() > 1e-2


def test_asd_gets_the_lower_end_of_the_range_of_t(run, by_hand):
  (grad, _), aux = run({"distillation.estimator": "asd", "distillation.asd.shift": 0.9})
  assert float(aux.t.min()) >= 1000 * LOWER
  hand = lambda t_min: by_hand("asd", aux.t, dict(shift=0.9, t_min=t_min))  # noqa: E731
  assert_only(grad, hand(LOWER), hand(0.5))  # 0.5: a quarter of the way


@pytest.mark.parametrize("convention, scale, upwards", [("diffusers", 4.0, -0.5), ("dreamfusion", 3.0, -1.5)])
def test_guidance_of_sdis_inversion_in_either_convention(run, by_hand, convention, scale, upwards):
  """Checks omega = 3 with the inversion at -0.5 times omega: 1 - 1.5 in the convention of diffusers."""
  (grad, _), aux = run({"distillation.estimator": "sdi", "distillation.sdi.inversion": -0.5,
                         "distillation.sdi.steps": 2, "distillation.sdi.stride": 0.2,
                         "distillation.guidance_scale": scale, "distillation.guidance_convention": convention})
  hand = lambda upwards: by_hand("sdi", aux.t, dict(  # noqa: E731
      inversion_scale=upwards, eta=0.3, stride=0.2, steps=2, start=0.0), scale, convention)
  assert_only(grad, hand(upwards), hand(-0.5 * scale + (convention == "dreamfusion")))


def test_noise_of_cds_depends_on_the_seed(run, by_hand):
  (grad, _), aux = run({"distillation.estimator": "cds", "seed": 7, "distillation.cds.clip": 9.0})
  hand = lambda seed: by_hand("cds", aux.t, dict(gap=0.1, spread=0.2, clip=9.0, noise_seed=seed))  # noqa: E731
  assert_only(grad, hand(7), hand(0))


def test_antithetic_noise_pairs_neighbouring_views(run):
  eps = {on: np.asarray(run({"distillation.antithetic_noise": on})[1].eps) for on in (True, False)}
  np.testing.assert_array_equal(eps[True][0::2], -eps[True][1::2])
  assert np.abs(eps[False][0::2] + eps[False][1::2]).max() > 0.1


@pytest.fixture(scope="module")
def phi(tiny_config, inputs):
  """Returns parameters of the second network under which adapters and camera both have an effect."""
  config = validate(tiny_config({"distillation.estimator": "vsd", "distillation.vsd.rank": 1}))
  start = second_network.init(config.distillation.vsd, PRIOR, inputs[1], WIDTH, jax.random.key(0))
  return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), start)


@pytest.mark.parametrize("forget", [0.0, 1.0])
def test_keys_and_conditions_of_vsds_networks(run, by_hand, inputs, phi, forget):
  """Checks that the image always moves under the camera, and that phi forgets the camera and has a separate key."""
  x, params, cond, camera = inputs
  (of_x, of_phi), aux = run({"distillation.estimator": "vsd", "distillation.vsd.rank": 1,
                             "distillation.vsd.forget_camera": forget}, score=phi, camera=camera)
  score_fn, side = second_network.make_score_fn(PRIOR), cond["cond"]

  def moved(camera):
    return by_hand("vsd", aux.t, dict(score_fn=score_fn, score_params=(params, phi),
                                      score_cond=dict(side, camera=camera)))

  @jax.jit
  def learnt(key, camera):
    condition = dict(side, camera=camera)
    return jax.grad(lambda phi: score_loss(score_fn, (params, phi), PRIOR.schedule, x, key, condition))(phi)

  assert_only(of_x, moved(camera), moved(0 * camera))
  known = camera * (1.0 - forget)
  expected = learnt(KEYS["score"], known)
  for other in (learnt(KEYS["distil"], known), learnt(KEYS["score"], camera * forget)):
    jax.tree.map(assert_only, of_phi["adapters"], expected["adapters"], other["adapters"])
  np.testing.assert_allclose(of_phi["camera"], expected["camera"], rtol=1e-4, atol=1e-6)
  assert np.any(of_phi["camera"]) == (forget == 0.0)


def test_a_camera_is_learnt_for_a_prior_without_cameras(inputs, tiny_config):
  """Checks that a step which forgets the camera leaves its map alone, and that another step moves the map."""
  params = inputs[1]
  config = validate(tiny_config({"distillation.estimator": "vsd", "distillation.vsd.rank": 1,
                                 "distillation.vsd.forget_camera": 0.5, "distillation.vsd.learning_rate": 0.1}))
  x, camera = jnp.full((2, WIDTH), 0.3), jnp.stack([jnp.ones(CAMERA_DIM), -jnp.ones(CAMERA_DIM)])
  side = dict(text=jnp.ones((2, 2, WIDTH)))
  phi = second_network.init(config.distillation.vsd, PRIOR, params, WIDTH, jax.random.key(0))
  kept = dict(score=phi, opt_state=second_network.make_optimizer(config.distillation.vsd).init(phi))

  @jax.jit
  def step(kept, forget_key):
    """Returns the state after a step of learning, gradients, and the estimates before the step for two cameras."""
    def loss(phi):
      keys = dict(step_keys(jax.random.key(0), jnp.int32(0)), forget=forget_key)
      return distil.distil(config.distillation, 1.0, PRIOR, params, x, dict(cond=side, uncond=side), keys,
                           jnp.float32(0.5), dict(score=phi, camera=camera), views=2, seed=0)[0]

    grads = jax.grad(loss)(kept["score"])
    estimate = second_network.make_score_fn(PRIOR)((params, kept["score"]), x, jnp.array([500, 500]),
                                                   dict(side, camera=camera))
    return estimator_state.learn(config.distillation, kept, grads), grads, estimate

  forgets = {bool(jax.random.bernoulli(jax.random.key(i), 0.5)): jax.random.key(i) for i in range(8)}
  after, grads, _ = step(kept, forgets[True])
  assert not np.any(grads["camera"]) and not np.any(after["score"]["camera"])
  assert any(np.any(pair["up"]) for pair in grads["adapters"].values())
  after, grads, before = step(kept, forgets[False])
  np.testing.assert_allclose(before[0], before[1], atol=1e-6)
  assert np.abs(after["score"]["camera"]).min() > 0.05
  apart = step(after, forgets[False])[2]
  assert np.abs(np.asarray(apart[0] - apart[1])).max() > 1e-3
