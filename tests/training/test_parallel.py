"""Compares one device with several under jit and pmap: equal numbers, one all-reduce, and a mean gradient."""
import os
import signal

import jax
import numpy as np
import pytest

from sds_jax.benchmarks.collectives import collectives
from sds_jax.schema import ConfigError
from sds_jax.training import layout as layout_lib, loop

KEY = jax.random.key(0)
STEPS = 9
EIGHT = {"training.views": 8, "training.steps": STEPS, "training.render_every": 3, "parallel.devices": 8}
BRANCHES = {"shading.lambertian": 0.5, "shading.albedo_until": 0.0, "occupancy.every": 0, "render.num_samples": 3,
            "render.candidates": 16}


@pytest.fixture(scope="module", autouse=True)
def small_parts():
  """Lowers the size from which parameters are sharded, because those of the tiny prior are small."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layout_lib, "SMALLEST_PART", 64)
    yield


@pytest.fixture(scope="module")
def run(make_task, mixing_prior, compiled_once):
  """Returns a function (changes, steps) -> (state, last metrics, program) of a run of eight views a step.

  The network is a linear function of z_t that depends on every parameter of the prior.
  """
  runs, (prior, prior_params) = {}, mixing_prior

  def of(changes, steps=STEPS):
    name = str((changes, steps))
    runs[name] = runs.get(name) or make(changes, steps)
    return runs[name]

  def make(changes, steps):
    task = make_task({**EIGHT, **changes})
    layout, program = layout_lib.make_layout(task.settings.parallel, 8), task.program(prior)
    text = program.embed()
    state = layout.put(jax.jit(lambda key: program.begin(prior_params, text, key, None))(jax.random.key(5)))
    fixed = (layout.put_prior(prior_params), layout.put(text), layout.put(KEY))
    with compiled_once(task, prior, program) as program:
      step = layout.compile(program.make_step(program.stages[0], layout.share), state, fixed)
    metrics = None
    with jax.transfer_guard("disallow"):
      for _ in range(steps):
        state, metrics = step(state, *fixed)
    return jax.device_get(layout.local((state, metrics))) + (step.as_text(),)
  return of


@pytest.fixture(scope="module")
def alone(run):
  return run({"parallel.devices": 1})


def worst(a, b):
  return max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(*map(jax.tree.leaves, (a, b))) if np.abs(x).max())


@pytest.mark.parametrize("changes", [{"parallel.mode": "pmap"}, {"parallel.shard_prior": True}],
                         ids=str)
def test_parameters_do_not_depend_on_the_devices(run, alone, changes):
  """Checks parameters and the gradient's norm: Adam's updates alone would hide a sum in place of a mean."""
  state, metrics, _ = run(changes)
  assert worst(alone[0].params, state.params) < 1e-5
  assert int(state.step) == STEPS
  for name, value in metrics.items():
    np.testing.assert_allclose(value, alone[1][name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("blocks", [0, pytest.param(-1, marks=pytest.mark.thorough)])
def test_branches_and_overflow_do_not_depend_on_the_devices(run, blocks):
  """Checks shading, blocks, a smaller sample budget, and samples beyond the budget."""
  one, many = (run({**BRANCHES, "render.block_points": blocks, "parallel.devices": devices}, 4) for devices in (1, 8))
  assert one[1]["overflow"] > 0.01 and worst(one[0].params, many[0].params) < 1e-5


def test_one_all_reduce_of_the_gradient_and_nothing_else(run):
  state, metrics, program = run({**BRANCHES, "render.block_points": 0, "parallel.devices": 8}, 4)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  (sent,) = collectives(program)
  assert sent.kind == "all-reduce" and 4 * numbers <= sent.bytes <= 4 * (numbers + len(metrics))


def test_a_sharded_prior_adds_only_all_gathers(run, prior_and_params):
  """Checks that each sharded parameter is gathered once a step, and that each device holds a share."""
  _, _, program = run({"parallel.shard_prior": True})
  layout = layout_lib.DeviceLayout("jit", jax.sharding.Mesh(np.array(jax.devices()), ("views",)), True)
  put = layout.put_prior(prior_and_params[1])
  parts = [leaf for leaf in jax.tree.leaves(put) if not leaf.sharding.is_fully_replicated]
  gathered = [entry.bytes for entry in collectives(program) if entry.kind == "all-gather"]
  assert parts and sorted(gathered) == sorted(leaf.nbytes for leaf in parts)
  assert all(leaf.addressable_shards[0].data.nbytes * 8 == leaf.nbytes for leaf in parts)
  assert [entry.kind for entry in collectives(program)].count("all-reduce") == 1


def test_restores_on_other_numbers_of_devices(make_task, train, mixing_prior, tmp_path):
  """Compares a run on one, eight and then one device again with a run on one."""
  def run_on(folder, devices, stop=None):
    task = make_task({**EIGHT, "parallel.devices": devices, "parallel.shard_prior": devices > 1})

    def on_render(state, step):
      if step == stop:
        os.kill(os.getpid(), signal.SIGTERM)

    return jax.device_get(train(task, folder, *mixing_prior, on_render).state)

  whole = run_on(tmp_path / "one", 1)
  for devices, stop in ((1, 3), (8, 6)):
    with pytest.raises(loop.Interrupted, match=f"stopped at step {stop} of {STEPS}"):
      run_on(tmp_path / "moved", devices, stop)
  moved = run_on(tmp_path / "moved", 1)
  assert int(moved.step) == STEPS and worst(whole.params, moved.params) < 1e-5


@pytest.mark.parametrize("changes, words", [
    ({"training.views": 6}, "training.views=6 cannot be spread evenly over the 8 devices: set it to 8 or a multiple, "
     "or use fewer devices with --config.parallel.devices=6"),
    ({"training.views": 8, "parallel.devices": 9}, "parallel.devices=9 exceeds the 8 available devices"),
    ({"training.views": 8, "training.particles": 4, "distillation.estimator": "vsd"},
     "the 8 devices times the 4 views that belong together: set it to 32")])
def test_views_that_the_devices_do_not_divide(make_task, changes, words):
  task = make_task({"parallel.devices": 0, **changes})
  with pytest.raises(ConfigError) as caught:
    layout_lib.make_layout(task.settings.parallel, task.settings.training.views, task.generator.together)
  assert words in str(caught.value)
