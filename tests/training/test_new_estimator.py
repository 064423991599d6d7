"""Tests an estimator of the user, as the documentation adds one: a record that runs in every task."""
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from sds_jax import settings
from sds_jax.commands import flags
from sds_jax.diffusion.estimators import ESTIMATORS, find
from sds_jax.settings.recipes import image2d
from sds_jax.tasks import Image2DTask

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-an-estimator.md"
NAME = "estimator_of_the_documentation:SPEC"
PLAIN = {"distillation.guidance_scale": 3.0, "optimizer.warmup_steps": 0}


@pytest.fixture(scope="session")
def prior_and_params(linear_prior):
  return linear_prior


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
  """Makes an importable module with the code of the page."""
  blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
  folder = tmp_path_factory.mktemp("modules")
  (folder / f"{NAME.partition(':')[0]}.py").write_text("\n".join(blocks), encoding="utf-8")
  sys.path.insert(0, str(folder))
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a user's session
    find(NAME)
  yield
  sys.path.remove(str(folder))
  del sys.modules[NAME.partition(":")[0]]


@pytest.fixture
def registered(monkeypatch):
  """Adds the record to the dictionary of estimators, by one line."""
  monkeypatch.setitem(ESTIMATORS, "shrunk", find(NAME))


def test_objects_by_the_registered_name(registered, make_task, prior_and_params, train, tmp_path):
  """Checks a whole run: options in the settings and in config.json, and an object that moves."""
  task = make_task({"distillation.estimator": "shrunk", "distillation.shrunk.share": ((0.0, 1.0), (1.0, 0.5)),
                    "training.steps": 2})
  assert task.settings.distillation.guidance_scale == ESTIMATORS["shrunk"].small.guidance_scale
  before = jax.device_get(jax.jit(task.new_state)(jax.random.key(0)).params)
  state = jax.device_get(train(task, tmp_path, *prior_and_params).state)
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(before))]
  assert int(state.step) == 2 and all(np.isfinite(moved)) and max(moved) > 1e-4
  stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["config"]["distillation"]
  assert stored["estimator"] == "shrunk" and stored["shrunk"]["share"] == [[0.0, 1.0], [1.0, 0.5]]


def test_images_by_the_name_of_the_module(tiny_prior, prior_and_params, step_of):
  """Checks that all of eps subtracted gives SDS, and none of eps gives SDS without its control variate."""
  prior, prior_params = prior_and_params

  def step(estimator, **options):
    config = image2d.from_words("pixels")
    config.update_from_flattened_dict({
        "prior.path": str(tiny_prior), "generator.size": 16, "parallel.devices": 1, "training.steps": 4,
        "training.views": 2, **PLAIN, "distillation.estimator": estimator})
    settings.add_users_options(config)
    for name, value in options.items():
      config.distillation.shrunk[name] = value
    task = Image2DTask(settings.validate(config))
    text = task.embed(prior)
    state = task.program(prior).begin(prior_params, text, jax.random.key(0), None)
    return jax.jit(step_of(task, prior))(state, prior_params, text, jax.random.key(1))

  norms = []
  for share, same in ((1.0, "sds"), (0.0, "score")):
    (mine, metrics), (expected, _) = step(NAME, share=share), step(same)
    norms.append(float(metrics["sds_grad_norm"]))
    assert norms[-1] > 0 and mine.estimator is None
    for a, b in zip(jax.tree.leaves(mine.opt_state), jax.tree.leaves(expected.opt_state)):  # moments of the gradient
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-8)
  assert norms[0] != pytest.approx(norms[1], rel=0.01)


def test_the_command_line_takes_its_options():
  def distillation(share):
    arguments = flags.parse(["run.py", f"--config={ROOT / 'configs' / 'text.py'}",
                             f"--config.distillation.shrunk.share={share}", f"--config.distillation.estimator={NAME}"])
    return settings.validate(arguments.config).distillation

  assert distillation(0.25).estimator == NAME and distillation(0.25).shrunk.share == 0.25
  with pytest.raises(settings.ConfigError, match="config.distillation.shrunk.share=2.0 is not legal"):
    distillation(2.0)
