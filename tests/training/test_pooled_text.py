"""Checks that the vector of the whole prompt goes wherever the tokens go: guidance, view words, estimators, scenes."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.schema import ConfigError
from sds_jax.tasks import ScenesTask
from sds_jax.training import conditions, scenes as scenes_lib
from sds_jax.views import prompts

SDXL = {"prior.path": "", "prior.name": "sdxl", "prior.random_weights": True}
RENDER = {"render.height": 8, "render.width": 8}
FEW = ("sds", "nfsd", "vsd", "ism", "dds")
"""Estimators whose conditions differ: plain, with a negative prompt, a second network, an inversion, a source."""


@pytest.fixture(scope="module")
def traced_once(tiny_pooled):
  """The network, whose calls share their traces."""
  return jax.jit(tiny_pooled[0].denoise)


@pytest.fixture
def seen(tiny_pooled, traced_once):
  """(prior that notes the shapes of the conditions of each call, the notes)."""
  prior, notes = tiny_pooled[0], []

  def denoise(params, z, t, cond):
    notes.append((z.shape[0], cond["text"].shape, cond["pooled"].shape))
    return traced_once(params, z, t, cond)

  return dataclasses.replace(prior, denoise=denoise), notes


def check(notes):
  assert notes and all(text == (batch, 77, 8) and pooled == (batch, 6) for batch, text, pooled in notes)


def trace(task, prior, params, step_of):
  """Traces the first step of a task's run, and compiles nothing."""
  program = task.program(prior)
  text = program.embed()
  state = jax.eval_shape(lambda key: program.begin(params, text, key, None), jax.random.key(3))
  jax.eval_shape(step_of(task, prior), state, params, text, jax.random.key(0))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.thorough)
                                  for name in ESTIMATORS])
def test_every_estimator(make_image_task, seen, tiny_pooled, step_of, name):
  trace(make_image_task("pixels", {**SDXL, "distillation.estimator": name}), seen[0], tiny_pooled[1], step_of)
  check(seen[1])


@pytest.mark.parametrize("changes", [
  {"distillation.view_words": "blended", "distillation.perp_neg": "threestudio"},
  {"distillation.estimator": "vsd", "distillation.vsd.rank": 1}], ids=["Perp-Neg", "VSD"])
def test_views_of_an_object(make_task, seen, tiny_pooled, step_of, changes):
  trace(make_task({**SDXL, **RENDER, **changes}), seen[0], tiny_pooled[1], step_of)
  check(seen[1])


def test_scenes(make_task, seen, tiny_pooled, step_of):
  task = ScenesTask(make_task({**SDXL, **RENDER, "prompts_file": "prompts.txt"}).settings)
  task.scenes = scenes_lib.make_scenes(("a red cube", "a blue cone"), 0)
  text = task.program(seen[0]).embed()
  assert text["views"]["pooled"].shape[::2] == (2, 6) and text["null"]["pooled"].shape == (2, 6)
  trace(task, seen[0], tiny_pooled[1], step_of)
  check(seen[1])


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_sizes_are_settings(make_task, tiny_published, name):
  task = make_task({**SDXL, "prior.name": name, "prior.original_size": (1024, 768), "prior.crop": (0, 8)})
  if name == "sdxl":
    assert task.opened[0].time_ids == (1024, 768, 0, 8, 16, 16)
  else:
    with pytest.raises(ConfigError, match=r"config.prior.original_size=\(1024, 768\) has no effect on .*='sd15', w"):
      _ = task.opened


def test_mixed_prompts_have_mixed_vectors(make_task, tiny_pooled):
  """Between two directions tokens and vector are mixed by the same weights."""
  task = make_task({**SDXL, **RENDER, "distillation.view_words": "blended"})
  text = task.embed(tiny_pooled[0])
  azimuth, elevation = jnp.array([0.6, 0.0]), jnp.array([0.2, 0.1])
  mixed = {name: conditions._by_direction(text["views"][name], azimuth, elevation, "blended")
           for name in ("text", "pooled")}
  weights = np.asarray(prompts.view_weights(azimuth, elevation))
  assert ((weights[0] > 0.05).sum()) == 2
  for name, value in mixed.items():
    np.testing.assert_allclose(value, np.tensordot(weights, np.asarray(text["views"][name]), 1), atol=1e-5)
