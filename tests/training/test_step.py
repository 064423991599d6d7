"""Tests the step as a program: its jaxpr, inputs and outputs, and effects of key and settings."""
import collections
import dataclasses
import warnings

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import guidance


def sub_jaxprs(value):
  if isinstance(value, jax.extend.core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, jax.extend.core.Jaxpr):
    return [value]
  return [j for item in value for j in sub_jaxprs(item)] if isinstance(value, (tuple, list)) else []


def count(jaxpr):
  """Counts each primitive in a jaxpr and all inner jaxprs."""
  counts = collections.Counter()
  for eqn in jaxpr.eqns:
    counts[eqn.primitive.name] += 1
    for parameter in eqn.params.values():
      for inner in sub_jaxprs(parameter):
        counts += count(inner)
  return counts


@pytest.fixture(scope="module")
def program(ready, prior_and_params, step_of):
  """Returns counts of the step, of the step with an idle network, and of one guided call of the network."""
  task, step, args = ready()
  prior, _ = prior_and_params
  idle = step_of(task, dataclasses.replace(prior, denoise=lambda params, z, t, cond: jnp.zeros_like(z)))
  z, t = jnp.zeros((2, *prior.x_shape)), jnp.zeros((2,), jnp.int32)
  cond = dict(text=jnp.zeros((2, 20, 8)), camera=jnp.zeros((2, 16)))
  denoise = guidance.guided(prior.denoise, "diffusers", 10.0)
  alone = jax.make_jaxpr(denoise)(args[1], z, t, dict(cond=cond, uncond=cond))
  return count(jax.make_jaxpr(step)(*args).jaxpr), count(jax.make_jaxpr(idle)(*args).jaxpr), count(alone.jaxpr)


def test_the_network_is_called_once_and_never_differentiated(program):
  """Checks the number of convolutions: a backward pass would add two for each."""
  whole, without, alone = program
  assert alone["conv_general_dilated"] >= 8 and alone["dot_general"] >= 8
  assert whole["conv_general_dilated"] == alone["conv_general_dilated"] and without["conv_general_dilated"] == 0
  assert whole["dot_general"] - without["dot_general"] == alone["dot_general"]


def test_counting_sees_a_backward_pass(ready, prior_and_params):
  """Checks that differentiating the network about doubles the number of convolutions."""
  prior, params = prior_and_params
  cond = dict(text=jnp.zeros((2, 20, 8)), camera=jnp.zeros((2, 16)))
  loss = lambda z: prior.denoise(params, z, jnp.zeros((2,), jnp.int32), cond).sum()  # noqa: E731
  z = jnp.zeros((2, *prior.x_shape))
  once, both = (count(jax.make_jaxpr(f)(z).jaxpr)["conv_general_dilated"] for f in (loss, jax.grad(loss)))
  assert both >= 2 * once - 1 > once


@pytest.fixture(scope="module")
def compiled(ready, linear_prior, step_of):
  """Returns (executable with a donated state, arguments, text of the lowered module)."""
  task, _, args = ready()
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # XLA warns about donated memory that it cannot use
    lowered = jax.jit(step_of(task, linear_prior[0]), donate_argnums=0).lower(*args)
    executable = lowered.compile()
  return executable, args, lowered.as_text()


def test_one_program_without_host_calls(compiled):
  _, _, text = compiled
  assert text.count("module @") == 1
  assert "callback" not in text and "infeed" not in text and "outfeed" not in text


def test_the_state_is_donated_and_the_prior_is_not(compiled):
  executable, (state, *fixed), text = compiled
  leaves = len(jax.tree.leaves(state))
  assert text.count("tf.aliasing_output") == leaves
  given = jax.tree.map(jnp.copy, state)
  after, _ = executable(given, *fixed)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fixed))
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), state)


def test_metrics_and_counter(compiled):
  executable, (state, *fixed), _ = compiled
  after, metrics = executable(jax.tree.map(jnp.copy, state), *fixed)
  assert int(after.step) == int(state.step) + 1 == 1
  assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
  assert all(np.isfinite(float(value)) for value in metrics.values())
  assert float(metrics["grad_norm"]) > 0.0 and float(metrics["sds_grad_norm"]) > 0.0


def steps(compiled, key, number):
  executable, (state, prior_params, text, _), _ = compiled
  state = jax.tree.map(jnp.copy, state)
  for _ in range(number):
    state, _ = executable(state, prior_params, text, key)
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


def test_equal_keys_give_equal_bits(compiled):
  first, again, other = (steps(compiled, jax.random.key(seed), 3) for seed in (0, 0, 1))
  assert first.tobytes() == again.tobytes() and np.abs(first - other).max() > 1e-4


def test_every_step_has_its_own_draws(compiled):
  """Checks that the step's number is folded into the key: one state has another gradient at each step."""
  executable, (state, *fixed), _ = compiled
  norms = [float(executable(jax.tree.map(jnp.copy, state.replace(step=jnp.int32(number))), *fixed)[1]["grad_norm"])
           for number in (0, 1, 0)]
  assert norms[0] == norms[2] and abs(norms[0] - norms[1]) > 1e-3 * norms[0]


def test_occupancy_is_updated_when_due(compiled):
  """Checks updates every second step from step 1 on: the grid, at first infinite, changes only after step 2."""
  executable, (state, *fixed), _ = compiled
  state, looked = jax.tree.map(jnp.copy, state), []
  for _ in range(4):
    state, _ = executable(state, *fixed)
    looked.append(int(jnp.isfinite(state.occupancy.density).sum()))
  assert looked == [0, 0, 16, 16]


@pytest.mark.parametrize("changes", [
  {"field.name": "hashgrid", "field.hashgrid.levels": 2, "field.hashgrid.finest": 16, "field.hashgrid.log2_table": 8,
   "background.name": "mlp", "occupancy.every": 0, "distillation.view_words": "blended", "camera.stratified": False},
  {"field.name": "paper_mlp", "field.paper_mlp.hidden": 8, "field.paper_mlp.blocks": 1, "background.name": "white",
   "render.normals": "difference", "distillation.view_words": "none", "distillation.t_sampler": "uniform",
   "render.height": 12, "render.width": 12, "distillation.clip_norm": (1.0,), "shading.textureless": 0.3},
])
def test_steps_of_other_settings_can_be_traced(ready, changes):
  """Traces the step: shapes and dtypes fit, and the state keeps its structure."""
  _, step, args = ready(changes)
  state, metrics = jax.eval_shape(step, *args)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), args[0])
  assert all(value.shape == () for value in metrics.values())
