"""Shared parts of the recipes: batches, the optimiser, the step, and the resumable loop."""
import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sds_jax.diffusion import schedules
from sds_jax.shapeworld import fitting, flag_types, recipe

SETTINGS = dict(steps=4, batch_size=3, learning_rate=0.1, warmup=1, decay=0.5, weight_decay=0.0, clip_norm=1e9)


def test_batches_cover_the_data_once_an_epoch():
  numbers = np.arange(10)
  data = dict(images=numbers, ids=numbers * 3, cameras=numbers * 2)
  feed = fitting.batches(data, 3, 7, 0)
  drawn = [next(feed) for _ in range(6)]
  for epoch in (drawn[:3], drawn[3:]):
    images = np.concatenate([batch["images"] for batch in epoch])
    assert len(set(images)) == 9
  assert not np.array_equal(drawn[0]["images"], drawn[3]["images"])
  for batch in drawn:
    assert batch.keys() == data.keys()
    np.testing.assert_array_equal(batch["ids"], batch["images"] * 3)
    np.testing.assert_array_equal(batch["cameras"], batch["images"] * 2)
  for first in (1, 3, 4):
    later = fitting.batches(data, 3, 7, first)
    np.testing.assert_array_equal(next(later)["images"], drawn[first]["images"])


def test_an_interrupted_save_is_no_checkpoint(tmp_path):
  assert not fitting.has_checkpoint(tmp_path)
  (tmp_path / "checkpoints" / "500.orbax-checkpoint-tmp").mkdir(parents=True)
  assert not fitting.has_checkpoint(tmp_path)
  (tmp_path / "checkpoints" / "500").mkdir()
  assert fitting.has_checkpoint(tmp_path)


@pytest.mark.parametrize("read, text, legal", [
  (flag_types.positive, "0", "at least 1"), (flag_types.positive, "two", "at least 1"),
  (flag_types.seed, "-1", "from 0 to"), (flag_types.seed, str(2**31), "from 0 to")])
def test_flags_out_of_range(read, text, legal):
  with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a whole number {legal}"):
    read(text)
  assert (flag_types.positive("7"), flag_types.seed("0"), flag_types.seed(str(2**31 - 1))) == (7, 0, 2**31 - 1)


def test_learning_rate_does_not_depend_on_the_length_before_the_decay():
  """Compares runs of two lengths up to the decay of the shorter; the final rate is zero."""
  settings = dict(SETTINGS, warmup=4, decay=0.25)
  moves = {}
  with jax.numpy_dtype_promotion("standard"):
    for steps in (20, 40):
      optimizer, w = fitting.make_optimizer(steps, settings), jnp.zeros(())
      state, moves[steps] = optimizer.init(w), []
      for _ in range(steps + 1):
        change, state = optimizer.update(jnp.ones(()), state, w)  # Adam under a constant gradient moves by the rate
        moves[steps].append(-float(change))
  np.testing.assert_allclose(moves[20][:15], moves[40][:15], rtol=1e-5)
  np.testing.assert_allclose(moves[20][:5], [0.0, 0.025, 0.05, 0.075, 0.1], atol=1e-4)
  np.testing.assert_allclose(moves[20][14:], [0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.0], atol=1e-4)


def test_times_of_a_batch_cover_all_levels_of_noise():
  schedule = schedules.schedule_from_config(recipe.SCHEDULER)
  with jax.numpy_dtype_promotion("standard"):
    t, denser = (np.asarray(fitting.draw_times(jax.random.key(0), 100, schedule, power)) for power in (1.0, 2.0))
  np.testing.assert_array_equal(np.sort(t) // 10, np.arange(100))  # one in each of a hundred equal parts of 0 .. 999
  assert denser.mean() > t.mean() + 100 and denser.max() <= 999


def test_the_loss_of_clean_images_equals_the_loss_of_v_prediction():
  """Checks v = alpha eps - sigma x: an error x_hat - x changes v by (x_hat - x) / sigma."""
  schedule = schedules.schedule_from_config(recipe.SCHEDULER)
  x, eps, x_hat = (jax.random.normal(jax.random.key(i), (2, 4, 4, 3)) for i in range(3))
  t = jnp.asarray([500, 900])
  alpha, sigma = (values[t][:, None, None, None] for values in (schedule.alpha, schedule.sigma))
  z = alpha * x + sigma * eps
  v, v_hat = (alpha * (z - alpha * clean) / sigma - sigma * clean for clean in (x, x_hat))
  loss = lambda limit: float(fitting.clean_image_loss(x_hat, x, schedule, t, limit))  # noqa: E731
  np.testing.assert_allclose(loss(1e9), jnp.mean((v - v_hat) ** 2), rtol=1e-4)
  np.testing.assert_allclose(loss(0.5), 0.5 * jnp.mean((x - x_hat) ** 2), rtol=1e-4)


def distance(params, batch, key):
  return jnp.mean((params["w"] - batch["x"] - 0.1 * jax.random.normal(key, batch["x"].shape)) ** 2)


@pytest.fixture
def run(monkeypatch):
  """Returns (folder, **options of `fit`) -> the last state of a fit of a number to ten examples."""
  with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
    optimizer = fitting.make_optimizer(SETTINGS["steps"], SETTINGS)
    step = fitting.make_step(distance, optimizer, 0.99)
    options = dict(on_sheet=lambda state: None, log_every=1, save_every=2, sheet_every=100)
    yield lambda out, **changes: fitting.fit(
      out, fitting.new_state(dict(w=jnp.zeros(())), optimizer), step, dict(x=np.arange(10.0, dtype=np.float32)),
      SETTINGS, 3, **{**options, **changes})


def test_a_killed_run_ends_like_an_uninterrupted_run(run, tmp_path, monkeypatch, capsys):
  class Killed(Exception):
    pass

  feed = fitting.batches

  def until_killed(*args):
    for number, batch in enumerate(feed(*args)):
      if number == 3:
        raise Killed
      yield batch

  sheets = []
  whole = run(tmp_path / "whole", on_sheet=lambda state: sheets.append(int(state.step)), sheet_every=2)
  assert sheets == [2]  # and not after the last step
  assert not fitting.has_checkpoint(tmp_path / "killed")
  monkeypatch.setattr(fitting, "batches", until_killed)
  with pytest.raises(Killed):
    run(tmp_path / "killed")
  assert fitting.has_checkpoint(tmp_path / "killed")
  monkeypatch.setattr(fitting, "batches", feed)
  resumed = run(tmp_path / "killed")
  assert "going on from step 2" in capsys.readouterr().out
  for leaf, expected in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
    assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()
  logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
          for name in ("whole", "killed")]
  assert [line["step"] for line in logs[0]] == [1, 2, 3, 4]
  assert [[(line["step"], line["loss"]) for line in log] for log in logs] == [
    [(line["step"], line["loss"]) for line in logs[0]]] * 2


def test_the_average_forgets_its_start_quickly():
  """Checks moves of the average by 9 / 10, then 9 / (10 + n), down to the given decay."""
  with jax.numpy_dtype_promotion("standard"):
    optimizer = optax.sgd(1.0)
    step = fitting.make_step(lambda params, batch, key: params["w"] * batch["slope"], optimizer, 0.2)
    state = fitting.new_state(dict(w=jnp.zeros(())), optimizer)
    averages = []
    for _ in range(3):
      state, metrics = step(state, dict(slope=np.float32(-1.0)), jax.random.key(0))
      averages.append(float(state.ema["w"]))
  assert float(state.params["w"]) == 3.0 and float(metrics["grad_norm"]) == 1.0
  first, second = 0.9, 2.0 - (2.0 - 0.9) * 2.0 / 11.0
  np.testing.assert_allclose(averages, [first, second, 0.2 * second + 0.8 * 3.0], rtol=1e-6)


def test_a_run_continues_with_the_stored_settings_only(tmp_path):
  path = tmp_path / "settings.json"
  fitting.check_same_settings(path, dict(SETTINGS, seed=1))
  fitting.check_same_settings(path, dict(SETTINGS, seed=1, steps=9))  # the number of steps may change
  with pytest.raises(ValueError, match="seed=2, but the run in .* was begun with seed=1"):
    fitting.check_same_settings(path, dict(SETTINGS, seed=2))
  with pytest.raises(ValueError, match="more=3, but the run in .* was begun with more=2"):
    fitting.check_same_settings(path, dict(SETTINGS, seed=1, more=3), dict(more=2))
  fitting.check_same_settings(path, dict(SETTINGS, seed=1, more=3), dict(more=3))
