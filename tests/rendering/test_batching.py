"""Batches of views and scenes: each is independent of the others, and branches stay branches."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sds_jax.rendering import render as render_lib
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.rendering.batching import any_of_batch
from sds_jax.rendering.render import RenderOptions, render_views
from sds_jax.types import FieldOutput
from sds_jax.views import cameras
from sds_jax.views.lights import LAMBERTIAN, Shading

# The first camera needs ten times the samples of the last.
CAMERAS = jax.jit(jax.vmap(lambda azimuth, distance: cameras.orbit(azimuth, 0.3, distance, 0.8)))(
  np.float32([0.1, 2.0, 3.0, 5.0]), np.float32([1.2, 2.0, 2.7, 6.0]))
KEYS = jax.random.split(jax.random.key(1), 4)
BACKGROUND = jnp.asarray(np.full((4, 8, 8, 3), 0.7, np.float32))
LIT = Shading(jnp.int32(LAMBERTIAN), jnp.float32(0.1), jnp.float32(0.9))
OPTIONS = RenderOptions(candidates=24, samples=8, block_points=None)
FEW = dataclasses.replace(OPTIONS, few=5, block_points=128)
SCENES = jnp.array([4.0, 9.0, 2.0])
OCCUPIED = np.zeros((3, 8, 8, 8), np.float32)
OCCUPIED[0, :4] = OCCUPIED[1, 3:5, 3:5, 3:5] = OCCUPIED[2, 0, 0, 0] = 1.0
GRIDS = Occupancy(jnp.asarray(OCCUPIED))
"""The three scenes need many, few and almost no samples."""


def ball(params, points):
  return FieldOutput(params * jnp.exp(-6 * jnp.sum(points**2, axis=-1)), jax.nn.sigmoid(params * points))


def render(views, options, params=SCENES[0], grid=None):
  lit = {} if options.normals == "none" else dict(light=CAMERAS.position[views], shade=LIT)
  return render_views(ball, params, jax.tree.map(lambda x: x[views], CAMERAS), 8, 8, BACKGROUND[views], KEYS[views],
                      options=options, grid=grid, **lit)


@pytest.mark.parametrize("few, block", [(None, None), (5, 100)])
def test_a_view_does_not_depend_on_the_rest_of_the_batch(few, block):
  """Overflows the budget of some views only; the other views keep all samples."""
  draw = jax.jit(functools.partial(
    render, options=dataclasses.replace(OPTIONS, few=few, block_points=block, normals="analytic")))
  batched, overflow = draw(jnp.arange(4))
  single = [draw(jnp.array([i])) for i in range(4)]
  lost = np.array([float(fraction) for _, fraction in single])
  assert lost.max() > 0.3 and lost.min() == 0
  np.testing.assert_allclose(overflow, lost.mean(), rtol=1e-6)

  def compare(whole, *parts):
    whole, parts = np.asarray(whole), np.concatenate(parts)
    np.testing.assert_allclose(whole, parts, rtol=1e-6, atol=1e-6 * np.abs(whole).max())

  jax.tree.map(compare, batched, *(out for out, _ in single))


def loss(params, grid):
  out, _ = render(jnp.arange(2, 4), FEW, params, grid)
  return jnp.sum(jnp.sin(3 * out.rgb)) + jnp.sum(out.depth)


def grad(params, grid):
  return jax.value_and_grad(loss)(params, grid)


def scan_in_shards(params, grids):
  """Computes each scene's gradient in a scan over a vmap over the scenes of a device, on three devices."""
  def local(params, grids):
    _, ran = jax.lax.scan(lambda carry, _: (carry, jax.vmap(grad)(params, grids)), 0, length=1)
    return jax.tree.map(lambda x: x[0], ran)

  mesh, spec = jax.make_mesh((3,), ("s",), axis_types=(jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec("s")
  return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(params, grids)


def grad_of_vmap(params, grids):
  # A new function each time: JAX keeps what it has traced of an old one, whatever has been patched since.
  recomputed = jax.checkpoint(lambda params, grid: loss(params, grid))
  values, pullback = jax.vjp(lambda params: jax.vmap(recomputed)(params, grids), params)
  return values, pullback(jnp.ones_like(values))[0]


TRANSFORMS = dict(vmap=lambda params, grids: jax.vmap(grad)(params, grids), grad_of_vmap=grad_of_vmap,
                  scan_in_shards=scan_in_shards)


@pytest.fixture(scope="module")
def single_scenes():
  one = jax.jit(grad)
  each = [one(*jax.tree.map(lambda x: x[i], (SCENES, GRIDS))) for i in range(3)]
  assert len({round(float(value), 2) for value, _ in each}) == 3
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


@pytest.mark.parametrize("transform", ["grad_of_vmap", "scan_in_shards"])
def test_batched_scenes_equal_single_scenes(transform, single_scenes):
  done = jax.jit(TRANSFORMS[transform])(SCENES, GRIDS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), done, single_scenes)


def count(jaxpr, name):
  """Counts the equations of this name, at any depth."""
  return sum((equation.primitive.name == name) + sum(count(inner, name) for inner in jaxprs_in_params(equation.params))
             for equation in jaxpr.eqns)


def counts(f, *args):
  jaxpr = jax.make_jaxpr(lambda *args: f(*args))(*args).jaxpr  # a new function each time, as above
  return {name: count(jaxpr, name) for name in ("cond", "select_n", "logistic")}


def test_branches_stay_branches(monkeypatch):
  """Counts as many branches as for a single scene; without `any_of_batch` no branch is left."""
  single = counts(grad, SCENES[0], jax.tree.map(lambda x: x[0], GRIDS))
  assert single["cond"] >= 6  # the choice of the budget, and the blocks of both budgets, forwards and backwards
  assert counts(TRANSFORMS["vmap"], SCENES, GRIDS) == counts(scan_in_shards, SCENES, GRIDS) == single
  recomputed = counts(grad_of_vmap, SCENES, GRIDS)
  assert recomputed["cond"] >= single["cond"]
  monkeypatch.setattr(render_lib, "any_of_batch", lambda predicate: predicate)
  for name in ("vmap", "grad_of_vmap"):
    without = counts(TRANSFORMS[name], SCENES, GRIDS)
    assert without["cond"] == 0 and without["select_n"] > recomputed["select_n"]


def test_any_of_batch():
  flags = jnp.array([[False, True], [False, False]])
  assert jax.vmap(any_of_batch)(flags[0]).tolist() == [True, True]
  assert jax.vmap(any_of_batch)(flags[1]).tolist() == [False, False]
  assert jax.vmap(jax.vmap(any_of_batch))(flags).all()
