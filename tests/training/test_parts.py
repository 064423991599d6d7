"""Tests the field from coarse to fine, and parts built from the settings."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.tasks import objects

POINTS = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (6, 3)), jnp.float32)


def as_rendered(field, settings):
  """Returns a function (params, progress) -> the field of a step at six points, [6, 4]."""
  schedule = objects.field_schedule(settings)

  @jax.jit
  def at(params, progress):
    apply, now = schedule.at(field, params, progress)
    return table(apply(now, POINTS))

  return lambda params, progress: np.asarray(at(params, jnp.float32(progress)))


def table(out):
  return jnp.concatenate([out.density[:, None], out.albedo], axis=1)


def test_the_papers_blur_falls_and_stays_low(make_task):
  settings = make_task({"field.name": "paper_mlp", "field.paper_mlp.hidden": 8, "field.paper_mlp.blocks": 1,
                        "field.paper_mlp.variance": ((0.0, 5e-2), (0.25, 2e-2))}).settings.field
  field = objects.make_field(settings)
  params = field.init(jax.random.key(0))
  blurred, at = jax.jit(lambda p, v: table(field.apply(p, POINTS, v))), as_rendered(field, settings)
  for progress, variance in ((0.0, 5e-2), (0.125, 3.5e-2), (0.25, 2e-2), (1.0, 2e-2)):
    np.testing.assert_allclose(at(params, progress), blurred(params, jnp.float32(variance)), rtol=1e-5)
  finished = jax.jit(lambda p: table(field.apply(p, POINTS)))(params)  # what outputs and scores look at
  np.testing.assert_allclose(at(params, 1.0), finished, rtol=1e-5)
  assert np.abs(at(params, 0.0) - at(params, 1.0)).max() > 1e-2


def test_levels_open_one_by_one(make_task):
  grid = {"levels": 3, "coarsest": 2, "finest": 8, "log2_table": 8, "hidden": 4,
          "open_levels": ((0.2, 1.0), (0.6, 3.0))}
  settings = make_task({"field.name": "hashgrid", **{f"field.hashgrid.{k}": v for k, v in grid.items()}}).settings.field
  field = objects.make_field(settings)
  params = field.init(jax.random.key(0))
  params = {**params, "HashGrid_0": jax.tree.map(lambda t: 1e4 * t, params["HashGrid_0"])}
  at = as_rendered(field, settings)
  stages = [at(params, progress) for progress in (0.0, 0.3, 0.4, 0.55, 0.6, 1.0)]
  changes = [np.abs(a - b).max() > 1e-3 for a, b in zip(stages, stages[1:])]
  assert changes == [False, True, False, True, False]
  finished = jax.jit(lambda p: table(field.apply(p, POINTS)))(params)
  np.testing.assert_allclose(stages[-1], finished, rtol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "paper_mlp", "hashgrid"])
def test_by_default_nothing_changes_over_the_run(make_task, name):
  settings = make_task({"field.name": name}).settings.field
  field, params = objects.make_field(settings), object()
  assert objects.field_schedule(settings).at(field, params, None) == (field.apply, params)


def test_cameras_by_focal_length(make_task):
  focal = lambda changes: make_task(changes).generator.viewpoints.distribution.focal  # noqa: E731
  assert focal(None) is None and focal({"camera.focal": (0.7, 1.35)}) == (0.7, 1.35)
