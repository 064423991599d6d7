"""Fixtures of the tests that score objects: an object made from a scene's distance, and smaller scores."""
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sds_jax import settings
from sds_jax.evaluation import scores
from sds_jax.fields.field import Field
from sds_jax.shapeworld import scenes
from sds_jax.tasks import Text3DTask
from sds_jax.training.state import TrainState
from sds_jax.types import FieldOutput

SHARPNESS, MARGIN = 0.003, 0.008
"""Width of the fall of the density; its depth below the surface, so that grazing rays pass."""
RIGHT = dict(angle=0.0, scale=1.0, move=(0.0, 0.0, 0.0), light=(0.0, 0.0, 1.0), ambient=1.0, density=150.0, fog=0.0,
             behind=(0.0, 0.0, 0.0), back_colour=(0.0, 0.0, 0.0))
"""A scene as it is, in its bare colours. The errors are further values of these."""


def apply(params, points):
  """Returns a scaled, turned, moved and lit scene; points beyond the plane `behind` have another colour."""
  inner = scenes.rotate_points_z(points - params["move"][None], -params["angle"]) / params["scale"]
  distance, albedo = scenes.sdf(params["scene"], inner)
  normals = inner - params["scene"].offset[:1]
  normals = normals / jnp.maximum(jnp.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
  to_light = params["light"][None] - inner
  lambert = jnp.sum(normals * to_light, -1) / jnp.linalg.norm(to_light, axis=-1)
  lit = albedo * (params["ambient"] + (1.0 - params["ambient"]) * jnp.maximum(lambert, 0.0))[:, None]
  behind = (points @ params["behind"] < 0.0)[:, None]
  colour = jnp.where(behind, params["back_colour"][None], lit)
  density = params["density"] * jax.nn.sigmoid(-(distance * params["scale"] + MARGIN) / SHARPNESS) + params["fog"]
  return FieldOutput(jnp.where(jnp.sum(points**2, axis=-1) < 0.8**2, density, 0.0), jnp.clip(colour, 0.0, 1.0))


@pytest.fixture(scope="session")
def scene_generator():
  """A generator whose objects are scenes; one for all files, which share its executables."""
  generator = Text3DTask(settings.validate(settings.defaults())).generator
  return dataclasses.replace(generator, field=Field(lambda key: {}, apply, 0.8))


@pytest.fixture(scope="session")
def object_of():
  """Returns a function (scene, **changes of RIGHT) -> the state of the object."""
  def make(scene, **changes):
    values = {name: jnp.asarray(value, jnp.float32) for name, value in {**RIGHT, **changes}.items()}
    params = dict(field=dict(values, scene=scene), background={})
    return TrainState(step=jnp.int32(0), params=params, opt_state=(), occupancy=None)

  return make


@pytest.fixture(scope="module")
def small_scores():
  """Scores smaller images, coarser grids and fewer poses, and optimizes: scores run longer than they compile.

  Of module scope, so that other files stay without optimizations.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scores, "SIZE", 40)
    patch.setattr(scores, "VOLUME_GRID", 28)
    patch.setattr(scores, "ROTATIONS", 3)  # every 120 degrees
    patch.setattr(scores, "SCALES", (0.8, 1.0, 1.2))
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
