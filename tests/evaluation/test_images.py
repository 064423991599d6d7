"""Tests the table over many sample photos: choice of photos, means, and that a run equals the command's run."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings
from sds_jax.evaluation import images
from sds_jax.evaluation.repeated import RepeatedRuns
from sds_jax.priors import prior as prior_lib
from sds_jax.shapeworld import captions, sample_photos, solids
from sds_jax.tasks import Image3DTask, photo
from sds_jax.training import loop
from sds_jax.training.layout import make_layout


def test_photos_are_of_three_kinds_and_half_never_seen():
  specs = [captions.parse(truth.caption) for truth in images.draw_truths(12, 1)]
  assert [len(spec.parts) for spec in specs] == [1, 2, 1] * 4
  assert all(spec.parts[0][1] not in solids.PLAIN for spec in specs[2::3])
  assert [captions.is_held_out(spec) for spec in specs] == ([False] * 3 + [True] * 3) * 2
  again = images.draw_truths(6, 1)
  assert again == images.draw_truths(12, 1)[:6] and again != images.draw_truths(6, 2)


def test_table_has_means_and_the_worst_view():
  record = dict({key: 0.5 for key, _ in images.COLUMNS.values()}, parts=1, plain=True, never_seen=False)
  records = [dict(record, silhouette_iou=0.75, worst_view_iou=0.5),
             dict(record, silhouette_iou=0.25, worst_view_iou=0.125, parts=2)]
  rows = {line.split(" | ")[0].strip("| "): line for line in images.table(records).splitlines()}
  assert "| all | 2 |" in rows["all"] and " 0.500 |" in rows["all"] and rows["all"].endswith("| 0.125 |")
  assert " 0.750 |" in rows["single"] and rows["single"].endswith("| 0.500 |") and "with a front" not in rows


def linear(prior, params):
  """Returns the prior with a linear function for its network, which compiles in no time."""
  def denoise(params, z, t, cond):
    shift = sum(leaf.reshape(len(z), -1).mean(1) for leaf in jax.tree.leaves(cond)) + 1e-3 * t.astype(z.dtype)
    return (0.5 + params["unet"]["conv_in"]["bias"].mean()) * z + 0.1 * shift[:, None, None, None]

  return dataclasses.replace(prior, denoise=denoise, predict=denoise), params


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_of_the_table_equals_the_run_of_the_command(tiny_view_prior, tiny_settings, tmp_path, devices):
  config = settings.defaults("image3d")
  tiny = {name: value for name, value in tiny_settings.items() if name != "prompt"}
  path = sample_photos.write_photo(sample_photos.draw_truth(5, caption="a red cube"), 64, tmp_path / "cube.png")
  config.update_from_flattened_dict({**tiny, "parallel.devices": devices, "training.views": devices,
                                     "image": str(path), "seed": 3})
  task = Image3DTask(settings.validate(config))
  prior, params = linear(*prior_lib.build(tiny_view_prior))
  data = photo.encode_photo(task.settings.picture, prior, task.read_inputs().arrays)
  program = task.program(prior, None, data)
  layout = make_layout(task.settings.parallel, devices, program.together)
  repeated = RepeatedRuns(program, layout, params, task.settings.training.steps).optimise(data, 3)
  workdir = tmp_path / "run"
  workdir.mkdir()
  expected = loop.train(task.settings, workdir, prior, layout.put_prior(params), program, layout).state
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(repeated.params), jax.device_get(expected.params))
  assert jnp.isfinite(jax.tree.leaves(repeated.params)[0]).all()
