"""The renderer against a loop over rays and samples, and the options against each other."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields.field import make_field
from sds_jax.rendering import occupancy
from sds_jax.rendering.render import RenderOptions, render_image, render_rays, render_views
from sds_jax.types import FieldOutput, Rays
from sds_jax.views import cameras
from sds_jax.views.lights import LAMBERTIAN, Shading

OPTIONS = RenderOptions(candidates=24, samples=24, block_points=None)
BLOCKS = dataclasses.replace(OPTIONS, block_points=200)
PARAMS = dict(density=jnp.float32(12.0), waves=jnp.float32(3.0))
CAMERAS = jax.jit(jax.vmap(lambda azimuth: cameras.orbit(azimuth, 0.3, 2.7, 0.8)))(np.float32([0.1, 2.0]))
KEYS = jax.random.split(jax.random.key(1), 2)
BACKGROUND = jnp.asarray(np.full((2, 8, 8, 3), 0.7, np.float32))
LIGHT = jnp.asarray(np.float32([[1.0, 0.2, 0.5], [-0.3, 1.0, 0.9]]))
LIT = Shading(jnp.int32(LAMBERTIAN), jnp.float32(0.1), jnp.float32(0.9))


def ball(params, points):
  """Evaluates density and colour in closed form, as the loop below does; compiles faster than a network."""
  density = params["density"] * jnp.exp(-12 * jnp.sum(points**2, axis=-1))
  return FieldOutput(density, 0.5 + 0.5 * jnp.sin(params["waves"] * points))


@functools.partial(jax.jit, static_argnames="options")
def render(params=PARAMS, options=OPTIONS, shots=CAMERAS, keys=KEYS, **kwargs):
  return render_views(ball, params, shots, 8, 8, BACKGROUND, keys, options=options, **kwargs)


@functools.partial(jax.jit, static_argnames="options")
@functools.partial(jax.value_and_grad, has_aux=True)
def gradient(params, options, **shade):
  """Returns ((loss, (image, overflow)), gradient)."""
  out, overflow = render(params, options, **shade)
  return jnp.sum(jnp.sin(3 * out.rgb)) + jnp.sum(out.orientation), (out, overflow)


@jax.jit
def lit(light):
  """Renders with analytic normals, lit from [2, 3], without jitter."""
  return render_views(ball, PARAMS, CAMERAS, 8, 8, BACKGROUND, options=dataclasses.replace(OPTIONS, normals="analytic"),
                      light=light, shade=LIT)[0]


def test_render_equals_the_loop():
  rng, steps, bound = np.random.default_rng(0), 24, 0.8
  origins = rng.normal(size=(20, 3))
  origins *= 2.5 / np.linalg.norm(origins, axis=1, keepdims=True)
  directions = rng.normal(size=(20, 3)) * 0.3 - origins
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  jitter, background = rng.random(20), rng.random((20, 3))
  rgb, opacity, depth = background.copy(), np.zeros(20), np.zeros(20)
  for r in range(20):
    rgb_r, through, closest = np.zeros(3), 1.0, -origins[r] @ directions[r]
    for i in range(steps):
      t = closest - bound + (i + jitter[r]) * 2 * bound / steps
      point = origins[r] + t * directions[r]
      if point @ point >= bound**2:
        continue
      alpha = 1 - np.exp(-4.0 * np.exp(-12 * point @ point) * 2 * bound / steps)
      rgb_r += through * alpha * (0.5 + 0.5 * np.sin(3 * point))
      opacity[r] += through * alpha
      depth[r] += through * alpha * t
      through *= 1 - alpha
    rgb[r] = rgb_r + through * background[r]
  rays = Rays(jnp.asarray(origins, jnp.float32), jnp.asarray(directions, jnp.float32))
  params = dict(density=jnp.float32(4.0), waves=jnp.float32(3.0))
  out, overflow = jax.jit(functools.partial(render_rays, ball, options=OPTIONS))(
    params, rays, jnp.asarray(background, jnp.float32), jnp.asarray(jitter, jnp.float32))
  assert overflow == 0 and opacity.max() > 0.5
  np.testing.assert_allclose(out.rgb, rgb, atol=1e-5)
  np.testing.assert_allclose(out.opacity, opacity, atol=1e-5)
  np.testing.assert_allclose(out.depth, depth / np.maximum(opacity, 1e-6), atol=1e-3)


def test_a_uniform_ball_is_beer_lambert_along_the_axis():
  def fog(params, points):
    return FieldOutput(jnp.full_like(points[:, 0], params), jnp.zeros_like(points))
  rays = Rays(jnp.array([[3.0, 0.0, 0.0]]), jnp.array([[-1.0, 0.0, 0.0]]))
  out, _ = jax.jit(functools.partial(render_rays, fog, options=OPTIONS))(jnp.float32(1.3), rays, jnp.ones((1, 3)))
  np.testing.assert_allclose(out.rgb, np.exp(-1.3 * 1.6), rtol=1e-5)
  np.testing.assert_allclose(out.opacity, 1 - np.exp(-1.3 * 1.6), rtol=1e-5)


@pytest.mark.parametrize("normals", ["none", "analytic", "difference"])
def test_blocks_change_neither_image_nor_gradient(normals):
  shade = {} if normals == "none" else dict(light=LIGHT, shade=LIT)
  results = [gradient(PARAMS, dataclasses.replace(options, normals=normals), **shade) for options in (OPTIONS, BLOCKS)]
  assert_same(*results)


def assert_same(a, b):
  """Compares two results of `gradient`."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4), a, b)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(a[1])) > 0.1


@pytest.mark.parametrize("few, enough", [(20, True), (3, False)])
def test_the_smaller_budget_is_used_when_sufficient(few, enough):
  """Compares image and gradient with the full budget; the number of evaluated points shows the chosen budget."""
  evaluated = []

  def recording(params, points):
    jax.debug.callback(lambda total: evaluated.append(int(total)), jnp.int32(points.shape[0]))
    return ball(params, points)

  def loss(params):
    out, overflow = render_views(recording, params, CAMERAS, 8, 8, BACKGROUND, KEYS,
                                 options=dataclasses.replace(OPTIONS, few=few))
    return jnp.sum(jnp.sin(3 * out.rgb)) + jnp.sum(out.orientation), (out, overflow)

  found = jax.block_until_ready(jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS))
  jax.effects_barrier()
  assert evaluated == [(few if enough else OPTIONS.samples) * 2 * 8 * 8]
  assert_same(found, gradient(PARAMS, OPTIONS))


def test_gradient_equals_finite_differences():
  exact, h = gradient(PARAMS, BLOCKS)[1], 3e-2
  for name in PARAMS:
    plus, minus = (gradient({**PARAMS, name: PARAMS[name] + s * h}, BLOCKS)[0][0] for s in (1, -1))
    np.testing.assert_allclose(exact[name], (plus - minus) / (2 * h), rtol=2e-2)


def test_normals_face_the_camera_and_front_is_lit():
  out = lit(CAMERAS.position)
  rays = jax.vmap(lambda c: cameras.camera_rays(c, 8, 8))(CAMERAS)
  towards = -np.sum(np.asarray(out.normals * rays.directions), axis=-1)
  solid = np.asarray(out.opacity) > 0.8
  assert solid.sum() >= 8 and (towards[solid] > 0.3).all()
  behind = lit(-CAMERAS.position)
  assert float(out.rgb[solid].mean()) > 2 * float(behind.rgb[solid].mean())


def test_bare_albedo_differentiates_no_density():
  field = make_field("mlp", hidden=8)
  params = jax.eval_shape(field.init, jax.random.key(0))

  def jaxpr(options, **shade):
    return str(jax.make_jaxpr(lambda p: render_views(field.apply, p, CAMERAS, 8, 8, BACKGROUND, KEYS, options=options,
                                                     **shade)[0].rgb)(params))
  bare = jaxpr(OPTIONS)
  assert bare.count("dot_general") < jaxpr(dataclasses.replace(OPTIONS, normals="analytic"), light=LIGHT,
                                           shade=LIT).count("dot_general")
  assert bare.count(" logistic ") <= 1 + 2  # two hidden layers and the albedo, once each


FEWER = dataclasses.replace(OPTIONS, samples=6)
"""A budget that suffices for occupied cells alone."""


def test_occupancy_skips_only_empty_cells():
  grid = occupancy.full_grid(16)
  update = jax.jit(lambda grid, turn: occupancy.update(grid, ball, PARAMS, KEYS[0], turn, bound=0.8))
  for turn in range(4):
    grid = update(grid, jnp.int32(turn))
  full, _ = render()
  sparse, overflow = render(options=FEWER, grid=grid)
  assert overflow == 0
  np.testing.assert_allclose(sparse.rgb, full.rgb, atol=2e-2)
  values = np.zeros((16, 16, 16), np.float32)
  values[0, 0, 0] = 1.0
  empty, _ = render(options=FEWER, grid=occupancy.Occupancy(jnp.asarray(values)))
  np.testing.assert_allclose(empty.rgb, BACKGROUND, atol=1e-6)


def test_overflow_drops_the_farthest_samples_and_is_reported():
  full, none = render()
  some, overflow = render(options=FEWER, grid=occupancy.full_grid(16))
  assert none == 0 and 0.05 < overflow < 0.9
  assert (np.asarray(some.opacity) <= np.asarray(full.opacity) + 1e-6).all()
  solid = np.asarray(full.opacity) > 0.9
  assert solid.any() and np.abs(np.asarray(some.rgb - full.rgb))[solid].mean() < 0.1


@pytest.mark.parametrize("rows", [3, 8, 64])
def test_image_in_chunks_equals_the_view(rows):
  camera = jax.tree.map(lambda x: x[1], CAMERAS)
  image = jax.jit(lambda params: render_image(
    ball, params, camera, 8, 8, BACKGROUND[1], light=LIGHT[1], shade=LIT, rows=rows,
    options=dataclasses.replace(OPTIONS, normals="analytic", samples=2)))(PARAMS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], atol=1e-5), image, lit(LIGHT))


def test_a_view_does_not_depend_on_the_other_views():
  """Renders the second view beside itself; for single views see test_batching."""
  both, _ = render()
  twice, _ = render(shots=jax.tree.map(lambda x: x[np.array([1, 1])], CAMERAS), keys=KEYS[np.array([1, 1])])
  for view in twice.rgb:
    np.testing.assert_allclose(view, both.rgb[1], atol=1e-6)


def test_views_are_unchanged_under_shard_map():
  mesh = jax.make_mesh((2,), ("views",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec("views")

  def local(params, cameras_, background, keys):
    return render_views(ball, params, cameras_, 8, 8, background, keys, options=BLOCKS)[0].rgb

  sharded = jax.shard_map(local, mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), spec, spec, spec), out_specs=spec)
  loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(3 * sharded(p, CAMERAS, BACKGROUND, KEYS)))))
  (value, _), grads = gradient(PARAMS, BLOCKS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), loss(PARAMS), (value, grads))


@pytest.mark.parametrize("options, message", [
  (dict(normals="finite"), "normals must be none, analytic or difference, not 'finite'"),
  (dict(samples=49), "need 0 < samples <= candidates, got 49 and 48")])
def test_bad_options_are_errors(options, message):
  with pytest.raises(ValueError) as caught:
    RenderOptions(**options)
  assert str(caught.value) == message


def test_shading_without_normals_is_an_error():
  with pytest.raises(ValueError, match="shading needs a light and options.normals other than 'none'"):
    render(light=LIGHT, shade=LIT)
