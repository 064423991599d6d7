"""Tests non-finite updates: dropped, counted and logged; many in a row restart the run, and finally end it."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.training import divergence, keys as keys_lib, layout as layout_lib, run_log
from sds_jax.training.workspace import WorkdirError


STEPS = 8
NEVER = 10**6
SOUND = dict(render=1.0, gradient=1.0, above=NEVER, since=0, restarts=NEVER)
"""Factors of renders and gradients. Predictions are NaN above a time, from a step on, below a number of restarts."""


@jax.custom_vjp
def scale_gradient(x, factor):
  del factor
  return x


scale_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, None))


def sick(prior, state):
  """Returns the prior with the illness in its parameters, before a step of this state."""
  def encode(params, image, key):
    image = image * params["ill"]["render"]
    return scale_gradient(prior.encode(params, image, key), params["ill"]["gradient"])

  def denoise(params, z, t, cond):
    ill = params["ill"]
    bad = (t > ill["above"]) & (state.step >= ill["since"]) & (state.health["restarts"] < ill["restarts"])
    return jnp.where(bad.reshape(-1, 1, 1, 1), jnp.nan, prior.denoise(params, z, t, cond))

  return dataclasses.replace(prior, encode=encode, denoise=denoise)


@pytest.fixture(scope="module")
def task_of(make_task):
  """Returns a function (settings that the step does not read) -> the task."""
  return lambda changes=None: make_task({"optimizer.warmup_steps": 0, "distillation.t_sampler": "uniform",
                                         "training.steps": STEPS, **(changes or {})})


@pytest.fixture(scope="module")
def program(task_of, linear_prior, step_of):
  """A program whose prior may fall ill; all tests share its one executable."""
  prior, task = linear_prior[0], task_of()
  return dataclasses.replace(task.program(prior), make_step=lambda stage, share: lambda state, *args: step_of(
      task, sick(prior, state))(state, *args))


@pytest.fixture
def run(task_of, linear_prior, program, train, tmp_path):
  """Returns a function (settings, illness) -> the last state of a run, as numpy."""
  def of(changes, **illness):
    prior, params = linear_prior
    params = dict(params, ill=SOUND | illness)
    return jax.device_get(train(task_of(changes), tmp_path, prior, params, program=program).state)
  return of


@pytest.fixture(scope="module")
def one_step(task_of, linear_prior, program, compiled_once):
  """Returns a function (change of the state, illness) -> (state before, state after, metrics) of one step."""
  (prior, params), task = linear_prior, task_of()
  new, text = jax.jit(task.new_state)(jax.random.key(1)), task.embed(prior)
  layout = layout_lib.make_layout(task.settings.parallel, 2)

  def run(start=lambda state: state, **illness):
    before = jax.device_get(start(new))
    state, *fixed = layout.put((before, dict(params, ill=SOUND | illness), text, jax.random.key(0)))
    with compiled_once(task, program.make_step, program) as shared:
      step = layout.compile(shared.make_step(program.stages[0], layout.share), state, tuple(fixed))
    return before, *jax.device_get(step(state, *fixed))
  return run


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_bits(a, b):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(a)] == [np.asarray(x).tobytes() for x in jax.tree.leaves(b)]


@pytest.mark.parametrize("illness", [dict(above=-1), dict(render=np.nan), dict(gradient=np.inf)],
                         ids=["prediction", "render", "gradient"])
def test_a_bad_update_is_dropped_whole_and_counted(one_step, illness):
  before, after, metrics = one_step(**illness)
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
  _, after, _ = one_step(start)
  assert after.health == dict(dropped=7, in_a_row=0, restarts=0)


def test_a_restart_changes_draws_and_lowers_the_rate(one_step):
  """Checks that a restart changes all draws but the shading, and scales the update by the factor of the settings."""
  first, again = (keys_lib.step_keys(jax.random.key(0), jnp.int32(5), restarts) for restarts in (0, 1))
  for name in keys_lib.STREAMS:
    same = same_bits(jax.random.key_data(first[name]), jax.random.key_data(again[name]))
    assert same == (name == "shading"), name
  moved = {}
  for restarts in (0, 2):
    before, after, _ = one_step(lambda state, n=restarts: dataclasses.replace(
        state, health=dict(state.health, restarts=jnp.int32(n))))
    moved[restarts] = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before.params, after.params))))
  # Adam's first update is the learning rate, whatever the gradient's size.
  assert moved[0] == pytest.approx(1e-2, rel=1e-3) and moved[2] == pytest.approx(0.25e-2, rel=1e-3)


def test_single_bad_steps_are_skipped_and_logged(run, tmp_path, capsys):
  state = run({"training.log_every": 4}, above=70)
  dropped = int(state.health["dropped"])
  assert 0 < dropped < STEPS == int(state.step)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
  assert lines(tmp_path)[-1]["dropped"] == dropped and lines(tmp_path)[-1]["sds_grad_norm"] > 0
  assert f"{dropped} update" in capsys.readouterr().out


def test_many_bad_steps_return_to_the_last_good_checkpoint(run, tmp_path, capsys):
  """Checks a prior that fails from step number 3 on, but not after a restart."""
  state = run({"training.checkpoint_every": 2, "divergence.patience": 2, "divergence.restarts": 1},
              above=-1, since=3, restarts=1)
  assert int(state.step) == STEPS and state.health == dict(dropped=2, in_a_row=0, restarts=1)
  out = capsys.readouterr().out
  # Bad are steps 4 and 5; the checkpoint of step 4 was made after a bad one, so it is not the one to go back to.
  assert "back from step 5 to 2, restart 1 of 1, with 0.5 times the learning rate" in out
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_run_gives_up_after_its_restarts(run):
  with pytest.raises(divergence.Diverged, match="gave up at step 3: 3 updates in a row .* after 2 restarts") as caught:
    run({"divergence.patience": 3, "divergence.restarts": 2}, above=-1)
  assert "config.optimizer.learning_rate" in str(caught.value) and "\n" not in str(caught.value)


def test_a_short_run_without_a_good_update_fails(run, task_of, tmp_path):
  """Checks a run that ends before its patience does: no result, and no outputs from its checkpoint."""
  patient = {"divergence.patience": 100}
  with pytest.raises(divergence.Diverged, match="none of the 8 updates of the run .* was finite.*learning_rate"):
    run(patient, above=-1)
  with pytest.raises(WorkdirError, match="none of the 8 updates"):
    task_of(patient).restore(tmp_path)


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
