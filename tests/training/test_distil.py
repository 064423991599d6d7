"""`distil` by hand: the keys, times, scales and conditions that reach the estimator and VSD's second network."""
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
"""The lower end of t's range at PROGRESS: the square root of a quarter is half of the way."""
KEYS = step_keys(jax.random.key(3), jnp.int32(5))


def denoise(params, z, t, cond):
  told = cond["text"].mean(1) + (cond["camera"][:, :WIDTH] if "camera" in cond else 0.0)
  return jnp.tanh(z + told + (t.astype(jnp.float32) / 1000)[:, None]) @ params["unet"]["to_q"]["kernel"]


PRIOR = types.SimpleNamespace(denoise=denoise, schedule=schedule_from_config({}), camera_dim=0,
                              prediction_type="epsilon")
"""What `distil` takes of a prior; it knows no cameras."""


@pytest.fixture(scope="module")
def inputs():
  """x [B, WIDTH], the prior's parameters, cond, the views' cameras."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  cond = {side: dict(text=array(B, 2, WIDTH)) for side in ("cond", "uncond", "negative")}
  return array(B, WIDTH), dict(unet=dict(to_q=dict(kernel=array(WIDTH, WIDTH)))), cond, array(B, CAMERA_DIM)


@pytest.fixture(scope="module")
def run(tiny_config, inputs):
  """(changes, own) -> (gradients with respect to x and phi, what was seen)."""
  x, params, cond, _ = inputs

  def of(changes, **own):
    settings = {**RANGE, "training.views": B, **changes}
    if changes.get("distillation.estimator") == "csd":
      del settings["distillation.guidance_scale"]  # which plays no part in it
    config = validate(tiny_config(settings))

    def loss(x, phi):
      return distil.distil(config.distillation, config.loss.sds, PRIOR, params, x, cond, KEYS, jnp.float32(PROGRESS),
                           dict(own, score=phi), views=B, seed=config.seed)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, own.get("score", {}))

  return of


@pytest.fixture(scope="module")
def by_hand(inputs):
  """(estimator, t, options, scale, convention) -> the gradient with respect to x, all written out."""
  x, params, cond, _ = inputs

  def of(name, t, options, scale=4.0, convention="diffusers"):
    def loss(x):
      return score_distillation(guided(denoise, convention, scale), params, PRIOR.schedule, x, KEYS["distil"], cond,
                                t=t, weighting="uniform", estimator=name, options=options)[0]
    return jax.jit(jax.grad(loss))(x)

  return of


def assert_only(found, expected, other):
  """`found` is `expected`, and that is not what a mistake would give."""
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  assert np.abs(np.asarray(expected) - np.asarray(other)).max() > 1e-3


OPTIONS = {
    "sds": {}, "score": {}, "sjc": {}, "rfds": {}, "ldiff": {}, "csd": dict(negative_weight=0.5),
    "nfsd": dict(null_until=0.2), "bridge": dict(bridged=0.0), "dds": {}, "pds": {},
    "ism": dict(delta_t=0.1 - 0.02 * PROGRESS / 0.3, delta_s=0.2, steps=5, start=0.0)}
"""Estimators that have no test of their own below -> their options at PROGRESS, besides a source."""


@pytest.mark.parametrize("name", OPTIONS)
def test_a_name_stands_for_its_estimator_with_the_options_of_the_moment(run, by_hand, inputs, name):
  source = dict(source_x=0.5 * inputs[0], source_cond=dict(inputs[2], cond=inputs[2]["negative"]))
  source = source if "source" in find(name).needs else {}
  (found, _), aux = run({"distillation.estimator": name}, **source)
  np.testing.assert_allclose(found, by_hand(name, aux.t, {**OPTIONS[name], **source}), rtol=1e-4, atol=1e-6)
  assert np.abs(found).max() > 1e-2


def test_asd_is_told_the_lower_end_of_ts_range_at_this_moment(run, by_hand):
  (found, _), aux = run({"distillation.estimator": "asd", "distillation.asd.shift": 0.9})
  assert float(aux.t.min()) >= 1000 * LOWER
  hand = lambda t_min: by_hand("asd", aux.t, dict(shift=0.9, t_min=t_min))  # noqa: E731
  assert_only(found, hand(LOWER), hand(0.5))  # 0.5: a quarter of the way


@pytest.mark.parametrize("convention, scale, upwards", [("diffusers", 4.0, -0.5), ("dreamfusion", 3.0, -1.5)])
def test_sdis_way_up_has_its_share_of_omega_in_either_convention(run, by_hand, convention, scale, upwards):
  """omega = 3, on the way up -0.5 times that: 1 - 1.5 in the convention of diffusers."""
  (found, _), aux = run({"distillation.estimator": "sdi", "distillation.sdi.inversion": -0.5,
                         "distillation.sdi.steps": 2, "distillation.sdi.stride": 0.2,
                         "distillation.guidance_scale": scale, "distillation.guidance_convention": convention})
  hand = lambda upwards: by_hand("sdi", aux.t, dict(  # noqa: E731
      inversion_scale=upwards, eta=0.3, stride=0.2, steps=2, start=0.0), scale, convention)
  assert_only(found, hand(upwards), hand(-0.5 * scale + (convention == "dreamfusion")))


def test_the_noise_of_cds_goes_by_the_seed(run, by_hand):
  (found, _), aux = run({"distillation.estimator": "cds", "seed": 7, "distillation.cds.clip": 9.0})
  hand = lambda seed: by_hand("cds", aux.t, dict(gap=0.1, spread=0.2, clip=9.0, noise_seed=seed))  # noqa: E731
  assert_only(found, hand(7), hand(0))


def test_antithetic_noise_is_that_of_views_in_pairs(run):
  eps = {on: np.asarray(run({"distillation.antithetic_noise": on})[1].eps) for on in (True, False)}
  np.testing.assert_array_equal(eps[True][0::2], -eps[True][1::2])
  assert np.abs(eps[False][0::2] + eps[False][1::2]).max() > 0.1


@pytest.fixture(scope="module")
def phi(tiny_config, inputs):
  """Parameters of the second network under which both adapters and camera count."""
  config = validate(tiny_config({"distillation.estimator": "vsd", "distillation.vsd.rank": 1}))
  start = second_network.init(config.distillation.vsd, PRIOR, inputs[1], WIDTH, jax.random.key(0))
  return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), start)


@pytest.mark.parametrize("forget", [0.0, 1.0])
def test_vsds_networks_are_told_and_draw_what_is_theirs(run, by_hand, inputs, phi, forget):
  """The image is moved with the camera told, always; phi learns with it forgotten, under a key of its own."""
  x, params, cond, camera = inputs
  (of_x, of_phi), aux = run({"distillation.estimator": "vsd", "distillation.vsd.rank": 1,
                             "distillation.vsd.forget_camera": forget}, score=phi, camera=camera)
  score_fn, side = second_network.make_score_fn(PRIOR), cond["cond"]

  def moved(camera):
    return by_hand("vsd", aux.t, dict(score_fn=score_fn, score_params=(params, phi),
                                      score_cond=dict(side, camera=camera)))

  @jax.jit
  def learnt(key, camera):
    told = dict(side, camera=camera)
    return jax.grad(lambda phi: score_loss(score_fn, (params, phi), PRIOR.schedule, x, key, told))(phi)

  assert_only(of_x, moved(camera), moved(0 * camera))
  known = camera * (1.0 - forget)
  expected = learnt(KEYS["score"], known)
  for other in (learnt(KEYS["distil"], known), learnt(KEYS["score"], camera * forget)):
    jax.tree.map(assert_only, of_phi["adapters"], expected["adapters"], other["adapters"])
  np.testing.assert_allclose(of_phi["camera"], expected["camera"], rtol=1e-4, atol=1e-6)
  assert np.any(of_phi["camera"]) == (forget == 0.0)


def test_a_camera_is_learnt_where_the_prior_knows_none(tiny_latent, tiny_config):
  """A step that forgets it leaves its map alone; one that does not moves it, and the answer begins to depend on it."""
  prior, params = tiny_latent
  config = validate(tiny_config({"prior.path": "", "prior.name": "sd15", "prior.random_weights": True,
                                 "distillation.estimator": "vsd", "distillation.vsd.rank": 1,
                                 "distillation.vsd.forget_camera": 0.5, "distillation.vsd.learning_rate": 0.1}))
  x, camera = jnp.full((2, *prior.x_shape), 0.3), jnp.stack([jnp.ones(CAMERA_DIM), -jnp.ones(CAMERA_DIM)])
  side = dict(text=jnp.ones((2, 77, 8)))
  phi = second_network.init(config.distillation.vsd, prior, params, 8, jax.random.key(0))
  kept = dict(score=phi, opt_state=second_network.make_optimizer(config.distillation.vsd).init(phi))

  @jax.jit
  def step(kept, forget_key):
    """One step of learning, and what phi says of one z and two cameras before it."""
    def loss(phi):
      keys = dict(step_keys(jax.random.key(0), jnp.int32(0)), forget=forget_key)
      return distil.distil(config.distillation, 1.0, prior, params, x, dict(cond=side, uncond=side), keys,
                           jnp.float32(0.5), dict(score=phi, camera=camera), views=2, seed=0)[0]

    grads = jax.grad(loss)(kept["score"])
    said = second_network.make_score_fn(prior)((params, kept["score"]), x, jnp.array([500, 500]),
                                              dict(side, camera=camera))
    return estimator_state.learn(config.distillation, kept, grads), grads, said

  forgets = {bool(jax.random.bernoulli(jax.random.key(i), 0.5)): jax.random.key(i) for i in range(8)}
  after, grads, _ = step(kept, forgets[True])
  assert not np.any(grads["camera"]) and not np.any(after["score"]["camera"])
  assert any(np.any(pair["up"]) for pair in grads["adapters"].values())
  after, grads, before = step(kept, forgets[False])
  np.testing.assert_allclose(before[0], before[1], atol=1e-6)
  assert np.abs(after["score"]["camera"]).min() > 0.05
  apart = step(after, forgets[False])[2]
  assert np.abs(np.asarray(apart[0] - apart[1])).max() > 1e-3
