"""One device, several under jit, several under pmap: the same numbers, one all-reduce, and no gradient too large."""
import re

import jax
import numpy as np
import pytest

from sds_jax.training import jobs, layout as layout_lib
from sds_jax.training.validation import validate

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def run(tiny_config, prior_and_params):
  """(changes, steps) -> (state, metrics of the last step, the program) of a run of eight views a step."""
  prior, prior_params = prior_and_params

  def of(changes, steps):
    config = validate(tiny_config({"training.views": 8, "training.steps": 40, "render.num_samples": 8, **changes}))
    layout, job = layout_lib.make_layout(config), jobs.text3d(config, prior)
    text = job.text()
    state = layout.put(jax.jit(lambda key: job.begin(prior_params, text, key, None))(jax.random.key(5)))
    fixed = (layout.put_prior(prior_params), layout.put(text), layout.put(KEY))
    step = layout.compile(job.make_step(job.stages[0], layout.share), state, fixed)
    with jax.transfer_guard("disallow"):
      for _ in range(steps):
        state, metrics = step(state, *fixed)
    return jax.device_get(layout.local((state, metrics))) + (step.as_text(),)
  return of


@pytest.fixture(scope="module")
def alone(run):
  return run({"parallel.devices": 1}, 20)


def worst(a, b):
  return max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(*map(jax.tree.leaves, (a, b))) if np.abs(x).max())


def collectives(program):
  """{kind: [bytes of each]} of a program's text."""
  found = {}
  for shape, kind in re.findall(r"= \(?(\w+\[[\d,]*\])[^=]*? (all-reduce|all-gather|reduce-scatter|all-to-all|"
                                r"collective-permute)(?:-start)?\(", program):
    kind_bytes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}[shape.split("[")[0]]
    sizes = [int(n) for n in re.findall(r"\d+", shape.split("[")[1])]
    found.setdefault(kind, []).append(kind_bytes * int(np.prod(sizes)))
  return found


@pytest.mark.parametrize("changes", [{}, {"parallel.mode": "pmap"}, {"parallel.shard_prior": True},
                                     {"parallel.devices": 2}, {"parallel.devices": 4}], ids=str)
def test_parameters_do_not_depend_on_the_devices(run, alone, changes):
  state, metrics, _ = run(changes, 20)
  assert worst(alone[0].params, state.params) < 1e-5
  assert int(state.step) == 20
  for name, value in metrics.items():
    np.testing.assert_allclose(value, alone[1][name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_one_all_reduce_of_the_gradient_and_nothing_else(run):
  state, metrics, program = run({}, 1)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  found = collectives(program)
  assert list(found) == ["all-reduce"] and len(found["all-reduce"]) == 1
  assert 4 * numbers <= found["all-reduce"][0] <= 4 * (numbers + len(metrics))
