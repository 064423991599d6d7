"""Tests the optimiser: learning rate over a run, kinds, clipping; and scheduled scalars."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.scalars import schedule_value
from sds_jax import settings as settings_lib
from sds_jax.schema import scheduled_values
from sds_jax.training.optimizer import make_optimizer
from sds_jax.training.state import init_state


@pytest.fixture(scope="session")
def prior_and_params(linear_prior):
  return linear_prior


def settings(**changes):
  config = settings_lib.defaults("text3d")
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return settings_lib.validate(config)


def updates(config, gradient, count):
  """Returns the first `count` updates of one parameter under a constant gradient."""
  optimizer = make_optimizer(config.optimizer, config.training.steps)
  params = dict(w=jnp.zeros(np.shape(gradient)))
  state, changes = init_state(params, optimizer, None), []
  assert state.step.dtype == jnp.int32 and int(state.step) == 0
  opt_state = state.opt_state
  for _ in range(count):
    change, opt_state = optimizer.update(dict(w=jnp.asarray(gradient, jnp.float32)), opt_state, params)
    changes.append(np.asarray(change["w"]))
  return np.array(changes)


def test_learning_rate_warms_up_and_falls():
  """Checks the rate by gradient descent: linear from 0 to 0.5 in 4 steps, then half a cosine down to 0.05."""
  config = settings(optimizer__name="sgd", optimizer__b1=0.0, optimizer__learning_rate=0.5, optimizer__warmup_steps=4,
                    optimizer__final_fraction=0.1, training__steps=20)
  warm = [0.5 * i / 4 for i in range(4)]
  fall = [0.05 + 0.45 * (1.0 + math.cos(math.pi * (i - 4) / 16)) / 2 for i in range(4, 20)]
  np.testing.assert_allclose(-updates(config, 1.0, 20), warm + fall, rtol=1e-5, atol=1e-7)


def test_no_warmup_begins_at_full_rate():
  config = settings(optimizer__name="sgd", optimizer__b1=0.0, optimizer__learning_rate=0.5, optimizer__warmup_steps=0)
  assert -updates(config, 1.0, 1)[0] == pytest.approx(0.5)


def test_adam_moves_by_the_rate_against_the_gradient():
  """Checks that Adam's first step is -rate sign(g) for any size of g, as its moments are bias-corrected."""
  config = settings(optimizer__warmup_steps=0, optimizer__learning_rate=0.01)
  np.testing.assert_allclose(updates(config, [3.0, -1e-4, 0.5], 1)[0], [-0.01, 0.01, -0.01], rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adan", "adamw", "sgd"])
def test_every_optimizer_goes_downhill(name):
  config = settings(optimizer__name=name, optimizer__warmup_steps=0, optimizer__learning_rate=0.05)
  optimizer, w = make_optimizer(config.optimizer, config.training.steps), jnp.asarray([2.0, -1.0])
  state = optimizer.init(w)
  for _ in range(50):
    change, state = optimizer.update(jax.grad(lambda v: jnp.sum(v**2))(w), state, w)
    w = w + change
  assert float(jnp.sum(w**2)) < 2.5


def test_gradient_is_clipped():
  config = settings(optimizer__name="sgd", optimizer__b1=0.0, optimizer__learning_rate=1.0, optimizer__warmup_steps=0,
                    optimizer__clip_norm=1.0)
  np.testing.assert_allclose(updates(config, [3.0, 4.0], 1)[0], [-0.6, -0.8], rtol=1e-5)
  np.testing.assert_allclose(updates(config, [0.3, 0.4], 1)[0], [-0.3, -0.4], rtol=1e-5)


@pytest.mark.parametrize("spec, progress, expected", [
  (3.0, 0.7, 3.0), (((0.0, 1.0), (1.0, 3.0)), 0.25, 1.5), (((0.2, 5.0), (0.4, 1.0)), 0.1, 5.0),
  (((0.2, 5.0), (0.4, 1.0)), 0.3, 3.0), (((0.2, 5.0), (0.4, 1.0)), 0.9, 1.0), (((0.5, 2.0),), 0.0, 2.0)])
def test_scheduled_scalars(spec, progress, expected):
  assert float(schedule_value(spec, progress)) == pytest.approx(expected, rel=1e-6)


def test_scheduled_values():
  assert scheduled_values(3.0) == [3.0] and scheduled_values(((0.0, 1.0), (1.0, 2.0))) == [1.0, 2.0]
  assert all(scheduled_values(bad) is None for bad in ((), (1.0, 2.0), ((0.0,),), ((0.0, 1.0), (0.0, 2.0)), ("a",)))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_learnt_background_has_its_own_rate(name):
  config = settings(optimizer__name=name, optimizer__warmup_steps=0, optimizer__background_factor=0.1)
  optimizer = make_optimizer(config.optimizer, config.training.steps)
  params = dict(field=jnp.ones(2), background=dict(w=jnp.ones(2)))
  change, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(change["field"], -0.01, rtol=1e-5)
  np.testing.assert_allclose(change["background"]["w"], -0.001, rtol=1e-5)


def test_the_average_of_parameters_in_closed_form(ready):
  """Checks the average of three steps, which outputs show; without an average outputs show the parameters."""
  _, step, (state, *fixed) = ready({"optimizer.ema_decay": 0.3})
  leaf, compiled = lambda tree: np.asarray(jax.tree.leaves(tree)[-1], np.float64), jax.jit(step)
  expected = leaf(state.params)
  for count in range(3):
    state, _ = compiled(state, *fixed)
    keep = min(0.3, (1 + count) / (10 + count))
    expected = keep * expected + (1 - keep) * leaf(state.params)
  np.testing.assert_allclose(leaf(state.ema), expected, rtol=1e-6)
  assert state.shown is state.ema and not np.allclose(leaf(state.ema), leaf(state.params), rtol=1e-6)
  plain = dataclasses.replace(state, ema=None)
  assert plain.shown is plain.params
