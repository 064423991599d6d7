"""Tests non-finite updates: dropped, counted and logged; many in a row restart the run, and finally end it."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training import divergence, keys as keys_lib, run_log
from sds_jax.training.workspace import WorkdirError


@pytest.fixture(scope="session")
def prior_and_params(linear_prior):
  return linear_prior


def poisoned(prior, bad):
  """Returns the prior with predictions that are NaN where bad(t), t [B] int32, is true."""
  def denoise(params, z, t, cond):
    eps = prior.denoise(params, z, t, cond)
    return jnp.where(bad(t).reshape(-1, 1, 1, 1), jnp.nan, eps)

  return dataclasses.replace(prior, denoise=denoise)


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_step(make_task, prior_and_params, step_of):
  """Returns a function (prior, changes of the state) -> (state before, state after, metrics) of one step."""
  prior, params = prior_and_params
  task = make_task({"optimizer.warmup_steps": 0})
  new = jax.jit(task.new_state)(jax.random.key(1))
  text = task.embed(prior)
  sound = jax.jit(step_of(task, prior))

  def run(change=None, start=lambda state: state):
    step, state = jax.jit(step_of(task, change(prior))) if change else sound, start(new)
    return jax.device_get((state, *step(state, params, text, jax.random.key(0))))
  return run


def same_bits(a, b):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(a)] == [np.asarray(x).tobytes() for x in jax.tree.leaves(b)]


def bad_render(prior):
  return dataclasses.replace(prior, encode=lambda params, image, key: prior.encode(params, image * jnp.nan, key))


def bad_gradient(prior):
  """Returns a finite value with an infinite gradient."""
  @jax.custom_vjp
  def through(x):
    return x

  through.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.inf,))
  return dataclasses.replace(prior, encode=lambda params, image, key: through(prior.encode(params, image, key)))


@pytest.mark.parametrize("change", [lambda prior: poisoned(prior, lambda t: t >= 0), bad_render, bad_gradient],
                         ids=["prediction", "render", "gradient"])
def test_a_bad_update_is_dropped_whole_and_counted(one_step, change):
  before, after, metrics = one_step(change)
  for name in ("params", "opt_state", "occupancy", "estimator"):
    assert same_bits(getattr(before, name), getattr(after, name)), name
  assert int(after.step) == 1 and after.health == dict(dropped=1, in_a_row=1, restarts=0)
  assert metrics["dropped"] == 1 and metrics["in_a_row"] == 1


def test_a_good_update_is_applied(one_step):
  before, after, metrics = one_step()
  assert not same_bits(before.params, after.params)
  assert after.health == dict(dropped=0, in_a_row=0, restarts=0) and metrics["dropped"] == 0


def test_a_good_update_resets_the_count_in_a_row(one_step):
  start = lambda state: dataclasses.replace(state, health=dict(  # noqa: E731
      dropped=jnp.int32(7), in_a_row=jnp.int32(3), restarts=jnp.int32(0)))
  _, after, _ = one_step(start=start)
  assert after.health == dict(dropped=7, in_a_row=0, restarts=0)


def test_a_restart_changes_draws_and_lowers_the_rate(one_step):
  """Checks that a restart changes all draws but the shading, and scales the update by the factor of the settings."""
  first, again = (keys_lib.step_keys(jax.random.key(0), jnp.int32(5), restarts) for restarts in (0, 1))
  for name in keys_lib.STREAMS:
    same = same_bits(jax.random.key_data(first[name]), jax.random.key_data(again[name]))
    assert same == (name == "shading"), name
  moved = {}
  for restarts in (0, 2):
    before, after, _ = one_step(start=lambda state, n=restarts: dataclasses.replace(
        state, health=dict(state.health, restarts=jnp.int32(n))))
    moved[restarts] = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before.params, after.params))))
  # Adam's first update is the learning rate, whatever the gradient's size.
  assert moved[0] == pytest.approx(1e-2, rel=1e-3) and moved[2] == pytest.approx(0.25e-2, rel=1e-3)


def test_single_bad_steps_are_skipped_and_logged(make_task, train, prior_and_params, tmp_path, capsys):
  prior, params = prior_and_params
  task = make_task({"training.steps": 8, "training.log_every": 4, "distillation.t_sampler": "uniform"})
  rare = poisoned(prior, lambda t: t > 70)
  state = jax.device_get(train(task, tmp_path, rare, params).state)
  dropped = int(state.health["dropped"])
  assert 0 < dropped < 8 and int(state.step) == 8
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
  assert lines(tmp_path)[-1]["dropped"] == dropped and lines(tmp_path)[-1]["sds_grad_norm"] > 0
  assert f"{dropped} update" in capsys.readouterr().out


def test_many_bad_steps_return_to_the_last_good_checkpoint(make_task, train, step_of, prior_and_params, tmp_path,
                                                             capsys):
  """Checks a prior that fails from step number 3 on, but not after a restart."""
  prior, params = prior_and_params
  task = make_task({"training.steps": 8, "training.checkpoint_every": 2, "divergence.patience": 2,
                    "divergence.restarts": 1})
  sick = dataclasses.replace(task.program(prior), make_step=lambda stage, share: lambda state, *args: step_of(
      task, poisoned(prior, lambda t: ((state.step >= 3) & (state.health["restarts"] == 0)) | (t < 0)))(state, *args))
  state = jax.device_get(train(task, tmp_path, prior, params, program=sick).state)
  assert int(state.step) == 8 and state.health == dict(dropped=2, in_a_row=0, restarts=1)
  out = capsys.readouterr().out
  # Bad are steps 4 and 5; the checkpoint of step 4 was made after a bad one, so it is not the one to go back to.
  assert "back from step 5 to 2, restart 1 of 1, with 0.5 times the learning rate" in out
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_run_gives_up_after_its_restarts(make_task, train, prior_and_params, tmp_path):
  prior, params = prior_and_params
  task = make_task({"training.steps": 40, "divergence.patience": 3, "divergence.restarts": 2})
  with pytest.raises(divergence.Diverged, match="gave up at step 3: 3 updates in a row .* after 2 restarts") as caught:
    train(task, tmp_path, poisoned(prior, lambda t: t >= 0), params)
  assert "config.optimizer.learning_rate" in str(caught.value) and "\n" not in str(caught.value)


def test_a_short_run_without_a_good_update_fails(make_task, train, prior_and_params, tmp_path):
  """Checks a run that ends before its patience does: no result, and no outputs from its checkpoint."""
  prior, params = prior_and_params
  task = make_task({"training.steps": 40, "divergence.patience": 100})
  with pytest.raises(divergence.Diverged, match="none of the 40 updates of the run .* was finite.*learning_rate"):
    train(task, tmp_path, poisoned(prior, lambda t: t >= 0), params)
  with pytest.raises(WorkdirError, match="none of the 40 updates"):
    task.restore(tmp_path)


@pytest.mark.parametrize("in_a_row, step, expected", [
  (2, 2, True), (1, 2, False), (0, 0, False), (np.array([3, 0]), 3, [True, False])])
def test_untouched_states(in_a_row, step, expected):
  health = dict(dropped=9, in_a_row=in_a_row, restarts=1)
  np.testing.assert_array_equal(divergence.is_untouched(health, step), expected)


def test_means_ignore_non_finite_values():
  steps = [dict(a=np.float32(value), dropped=np.float32(i), in_a_row=np.float32(0)) for i, value in
           enumerate([1.0, np.nan, 3.0, np.inf])]
  means = run_log.summary(steps)
  assert means["a"].tolist() == [2.0] and means["dropped"].tolist() == [3.0]
  assert np.isnan(run_log.summary([dict(a=np.array([np.nan, 1.0]))])["a"]).tolist() == [True, False]
