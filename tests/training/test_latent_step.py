"""Tests the step with a latent prior as a program: its jaxpr, and one compilation for a whole run."""
import collections
import dataclasses

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import guidance

LATENT = {"prior.path": "", "prior.name": "sd15", "prior.random_weights": True, "render.height": 8, "render.width": 8,
          "training.views": 1}


def count(jaxpr):
  """Counts each primitive in a jaxpr and all inner jaxprs."""
  counts = collections.Counter(eqn.primitive.name for eqn in jaxpr.eqns)
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      for item in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(item, "jaxpr", item)
        if hasattr(inner, "eqns"):
          counts += count(inner)
  return counts


@pytest.fixture(scope="module")
def task(make_task, tiny_latent):
  return make_task(LATENT)


@pytest.fixture(scope="module")
def args(task, tiny_latent):
  """Returns the step's arguments."""
  key = jax.random.key(0)
  state = jax.eval_shape(lambda: task.new_state(key))
  return state, tiny_latent[1], task.embed(tiny_latent[0]), key


def counted(function, *args):
  return count(jax.make_jaxpr(function)(*args).jaxpr)


def test_the_unet_is_not_differentiated_and_the_encoder_only_in_the_image(task, args, tiny_latent, step_of):
  prior, params = tiny_latent
  idle = dataclasses.replace(prior, denoise=lambda params, z, t, cond: jnp.zeros_like(z))
  image, z, t = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, *prior.x_shape)), jnp.zeros((1,), jnp.int32)
  cond = dict(text=jnp.zeros((1, 77, 8)))

  def encode_and_back(params, image, key):
    x, pullback = jax.vjp(lambda image: prior.encode(params, image, key), image)
    return pullback(x)

  whole = counted(step_of(task, prior), *args)
  without = counted(step_of(task, idle), *args)
  unet = counted(guidance.guided(prior.denoise, "diffusers", 3.0), params, z, t, dict(cond=cond, uncond=cond))
  forward = counted(prior.encode, params, image, args[3])
  both = counted(encode_and_back, params, image, args[3])
  assert unet["conv_general_dilated"] >= 8 and unet["dot_general"] >= 8
  for name in ("conv_general_dilated", "dot_general"):
    assert whole[name] - without[name] == unet[name]  # a backward pass would have two more for each
  # In the encoder each convolution comes back once, to its input: the weights get no gradient.
  assert without["conv_general_dilated"] == both["conv_general_dilated"] == 2 * forward["conv_general_dilated"] > 8


@pytest.mark.thorough
def test_one_compilation_for_a_whole_run(make_task, train, tiny_latent, tmp_path):
  compiled = []

  def listen(event, seconds, **facts):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(facts["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    state = train(make_task(LATENT), tmp_path, *tiny_latent, anew=True).state
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert int(state.step) == 4 and sum("step" in name for name in compiled) == 1 and "step" in compiled[-1]
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(state.params)))
  assert '"folder": "random weights"' in (tmp_path / "config.json").read_text()
