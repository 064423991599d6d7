"""Tests that steps of the published recipes can be built; tests/settings tests the settings of the recipes."""
import jax
import pytest

from sds_jax import settings
from sds_jax.settings.recipes import text3d
from sds_jax.tasks import Text3DTask


@pytest.mark.parametrize("words", ["dreamfusion,owner/name", "threestudio_sd,owner/name", "dreamfusionacc,shapeworld"])
def test_a_step_can_be_built(prior_and_params, step_of, tiny_prior, words):
  """Traces the step of each recipe with the tiny prior and fewer samples, levels and blocks."""
  config = text3d.from_words(words)
  config.update_from_flattened_dict({
    "prior.path": str(tiny_prior), "prompt": "a red cube", "render.height": 16, "render.width": 16,
    "render.num_samples": 2, "render.candidates": 4, "field.hashgrid.log2_table": 8, "occupancy.resolution": 4,
    "field.hashgrid.levels": 2, "field.paper_mlp.blocks": 1})
  if config.field.hashgrid.open_levels != 0.0:
    config.field.hashgrid.open_levels = ((0.2, 1.0), (0.6, 2.0))
  prior, prior_params = prior_and_params
  task, key = Text3DTask(settings.validate(config)), jax.random.key(0)
  state = jax.eval_shape(task.new_state, key)
  after, metrics = jax.eval_shape(step_of(task, prior), state, dict(unet=prior_params["unet"]), task.embed(prior), key)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert metrics["orientation"].shape == () and bool(after.params["background"]) == ("owner" in words)
