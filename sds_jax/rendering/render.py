"""Volume rendering with a fixed budget of field evaluations: pack, evaluate, composite.

Candidate samples lie evenly on every ray; those inside the bounding ball and in occupied cells are packed, nearest
first, into an array of fixed size for each view; the field sees only these arrays. Shapes stay static while rays that
miss the object cost nothing, and no view depends on which others are rendered with it.
"""
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sds_jax.fields.field import with_difference_normals, with_normals
from sds_jax.rendering import compositing, occupancy, sampling, shading
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.rendering.batching import any_of_batch
from sds_jax.types import Array, Camera, FieldFn, FieldOutput, Params, Rays, RenderOutput
from sds_jax.views.cameras import camera_rays
from sds_jax.views.lights import Shading


@dataclasses.dataclass(frozen=True)
class RenderOptions:
  """What is fixed at compile time.

  Attributes:
    bound: radius of the ball that holds the scene, world units.
    candidates: S, places looked at on each ray; their spacing is 2 bound / S.
    samples: K, field evaluations a ray, on average over the rays of a view: its budget is K times their number. At
      most S.
    normals: "none", "analytic" or "difference" (forward differences). Needed to shade.
    difference_step: width of the differences, world units.
    occupied_depth: cells whose optical depth over one spacing is below this are skipped (instant-ngp: 0.01).
    few: another budget, smaller than `samples`, taken when it is enough for what all views want: on CPUs passes over
      arrays that are mostly empty cost as much as the field. None for accelerators, whose programs should not branch.
    block_points: how many points the field sees at a time, recomputed in the backward pass, so that activations stay
      in cache; blocks without samples are skipped. None (all at once, nothing recomputed) is for accelerators.
  """
  bound: float = 0.8
  candidates: int = 48
  samples: int = 16
  few: int | None = None
  normals: str = "none"
  difference_step: float = 1e-2
  occupied_depth: float = 0.01
  block_points: int | None = 4096

  def __post_init__(self):
    if self.normals not in ("none", "analytic", "difference"):
      raise ValueError(f"normals must be none, analytic or difference, not {self.normals!r}")
    if not 0 < self.samples <= self.candidates:
      raise ValueError(f"need 0 < samples <= candidates, got {self.samples} and {self.candidates}")
    if self.few is not None and not 0 < self.few < self.samples:
      raise ValueError(f"need 0 < few < samples, got {self.few} and {self.samples}")


def render_rays(field: FieldFn, params: Params, rays: Rays, background: Array, jitter: Array | None = None, *,
                options: RenderOptions = RenderOptions(), grid: Occupancy | None = None, light: Array | None = None,
                shade: Shading | None = None, views: int = 1) -> tuple[RenderOutput, Array]:
  """Renders rays.

  Args:
    field, params: what is rendered; differentiable in `params`.
    rays: [R].
    background: [R, 3], colours behind the object.
    jitter: [R] in [0, 1), where in its interval each ray samples; None for midpoints.
    options: static.
    grid: occupancy over [-bound, bound]^3; None for the whole ball.
    light: [R, 3] light positions, world units; with `shade`.
    shade: the step's shading; None for bare albedo, which needs neither light nor normals.
    views: how many views the rays are of, one after the other, R / views of them each; each has its own budget.

  Returns:
    RenderOutput of [R], and the fraction [] of wanted samples that the budget had no room for (the farthest ones), a
    mean over the views; a view that wants none has lost none.

  Raises:
    ValueError: shading was asked for without a light or normals.
  """
  if shade is not None and (light is None or options.normals == "none"):
    raise ValueError("shading needs a light and options.normals other than 'none'")
  count = rays.origins.shape[0]
  jitter = jnp.full((count,), 0.5, rays.origins.dtype) if jitter is None else jitter
  distances, widths = sampling.even_steps(rays, options.bound, options.candidates, jitter)
  wanted = _wanted(rays, distances, grid, options).reshape(-1, views, count // views).swapaxes(0, 1)  # [V, S, R / V]

  def within(budget: int) -> tuple[RenderOutput, Array]:
    return _render_packed(field, params, rays, background, distances, widths, wanted, budget * count // views, options,
                          light, shade)

  if options.few is None:
    return within(options.samples)
  most = jnp.max(jnp.sum(wanted, axis=(1, 2), dtype=jnp.int32))
  return jax.lax.cond(any_of_batch(most > options.few * (count // views)),
                      lambda: within(options.samples), lambda: within(options.few))


def _render_packed(field: FieldFn, params: Params, rays: Rays, background: Array, distances: Array, widths: Array,
                   wanted: Array, budget: int, options: RenderOptions, light: Array | None,
                   shade: Shading | None) -> tuple[RenderOutput, Array]:
  """`render_rays` with room for `budget` of each view's `wanted` samples (bool [V, S, R / V]) at `distances` [S, R]."""
  count, pixels = rays.origins.shape[0], wanted.shape[2]
  place, kept, overflow = jax.vmap(lambda mask: occupancy.pack(mask.reshape(-1), budget))(wanted)
  valid = (jnp.arange(budget, dtype=jnp.int32)[None] < kept[:, None]).reshape(-1)
  first = jnp.arange(wanted.shape[0], dtype=jnp.int32)[:, None] * pixels
  ray = jnp.where(valid, (first + place % pixels).reshape(-1), 0)
  index = jnp.where(valid, (place // pixels).reshape(-1) * count + ray, distances.size)
  t = distances.reshape(-1).at[index].get(mode="fill", fill_value=0.0)
  points = (rays.origins[ray] + t[:, None] * rays.directions[ray]) * valid[:, None].astype(t.dtype)
  out, normals = _evaluate(field, params, jax.lax.stop_gradient(points), valid, options)

  depths = jnp.where(valid, out.density, 0.0) * widths[ray]
  table = jnp.zeros((distances.size,), depths.dtype).at[index].set(depths, mode="drop", unique_indices=True)
  weight = compositing.weights(table.reshape(distances.shape)).reshape(-1).at[index].get(mode="fill", fill_value=0.0)
  colour = out.albedo if shade is None else shading.shade(out.albedo, normals, points, light[ray], shade)
  return _composite(weight, colour, t, normals, rays, ray, background), jnp.mean(overflow)


def render_views(field: FieldFn, params: Params, cameras: Camera, height: int, width: int, background: Array,
                 keys: Array | None = None, *, options: RenderOptions = RenderOptions(), grid: Occupancy | None = None,
                 light: Array | None = None, shade: Shading | None = None) -> tuple[RenderOutput, Array]:
  """Renders images [B, H, W] of cameras [B], each with its own sample budget.

  `background` is [B, H, W, 3], `light` [B, 3], `keys` [B] the views' own keys, consumed to jitter the samples (None: no
  jitter); all else as in `render_rays`.
  """
  views, pixels = cameras.focal.shape[0], height * width
  rays = jax.vmap(lambda camera: camera_rays(camera, height, width))(cameras)
  rays = jax.tree.map(lambda x: x.reshape(-1, 3), rays)
  jitter = None if keys is None else jax.vmap(lambda key: jax.random.uniform(key, (pixels,)))(keys).reshape(-1)
  light = None if light is None else jnp.repeat(light, pixels, axis=0, total_repeat_length=views * pixels)
  out, overflow = render_rays(field, params, rays, background.reshape(-1, 3), jitter, options=options, grid=grid,
                              light=light, shade=shade, views=views)
  return jax.tree.map(lambda x: x.reshape(views, height, width, *x.shape[1:]), out), overflow


def render_image(field: FieldFn, params: Params, camera: Camera, height: int, width: int, background: Array, *,
                 options: RenderOptions = RenderOptions(), grid: Occupancy | None = None, light: Array | None = None,
                 shade: Shading | None = None, rows: int = 64) -> RenderOutput:
  """One image [H, W] for looking at, `rows` rows at a time, every wanted sample kept (no jitter, no budget).

  `background` is [H, W, 3] and `light` [3]; not meant to be differentiated.
  """
  options = dataclasses.replace(options, samples=options.candidates, few=None)
  everything = camera_rays(camera, height, width)
  chunks = -(-height // rows)

  def chunked(x):
    x = jnp.pad(x, [(0, chunks * rows - height), (0, 0), (0, 0)], mode="edge")
    return x.reshape(chunks, rows * width, 3)

  def one(chunk):
    rays, behind = chunk
    lights = None if light is None else jnp.broadcast_to(light[None], behind.shape)
    return render_rays(field, params, rays, behind, options=options, grid=grid, light=lights, shade=shade)[0]

  out = jax.lax.map(one, (jax.tree.map(chunked, everything), chunked(background)))
  return jax.tree.map(lambda x: x.reshape(chunks * rows, width, *x.shape[2:])[:height], out)


def _wanted(rays: Rays, distances: Array, grid: Occupancy | None, options: RenderOptions) -> Array:
  """bool [S, R]: the sample is in front of the camera, inside the ball and in an occupied cell."""
  points = tuple(rays.origins[None, :, axis] + distances * rays.directions[None, :, axis] for axis in range(3))
  wanted = (distances > 0) & (sum(p * p for p in points) < options.bound**2)
  if grid is None:
    return wanted
  spacing = 2 * options.bound / options.candidates
  cells = occupancy.occupied_cells(grid, options.occupied_depth / spacing)
  return wanted & occupancy.look_up(cells, points, options.bound)


def _evaluate(field: FieldFn, params: Params, points: Array, valid: Array,
              options: RenderOptions) -> tuple[FieldOutput, Array]:
  """The field and its normals at `points` [N, 3], in blocks if so asked; only those that are `valid` [N] count."""

  def at(some):
    if options.normals == "analytic":
      return with_normals(field, params, some)
    if options.normals == "difference":
      return with_difference_normals(field, params, some, options.difference_step)
    return field(params, some), jnp.zeros_like(some)

  block, total = options.block_points, points.shape[0]
  if block is None or total <= block:
    return at(points)

  def nothing(some):
    zero = jnp.sum(some) * 0  # derived from the points, so that under shard_map it varies over the same devices
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) + zero, jax.eval_shape(at, some))

  @jax.checkpoint
  def one(counts, some):
    return jax.lax.cond(counts, at, nothing, some)

  blocks = -(-total // block)
  some = jnp.pad(points, [(0, blocks * block - total), (0, 0)]).reshape(blocks, block, 3)
  counts = jnp.any(jnp.pad(valid, (0, blocks * block - total)).reshape(blocks, block), axis=1)
  out = jax.lax.map(lambda args: one(any_of_batch(args[0]), args[1]), (counts, some))
  return jax.tree.map(lambda x: x.reshape(blocks * block, *x.shape[2:])[:total], out)


def _composite(weight: Array, colour: Array, t: Array, normals: Array, rays: Rays, ray: Array,
               background: Array) -> RenderOutput:
  """Sums over the packed samples [N] of every ray: images from weights."""

  def total(values):
    return jax.ops.segment_sum(weight[:, None] * values, ray, num_segments=background.shape[0])

  sums = total(jnp.concatenate([colour, jnp.ones_like(t)[:, None], t[:, None], normals], axis=-1))
  opacity, hit = sums[:, 3], sums[:, 4]
  facing_away = jnp.maximum(jnp.sum(normals * rays.directions[ray], axis=-1), 0.0)
  orientation = jax.ops.segment_sum(
    jax.lax.stop_gradient(weight) * facing_away**2, ray, num_segments=background.shape[0])
  return RenderOutput(
    rgb=sums[:, :3] + (1 - opacity)[:, None] * background, opacity=opacity,
    depth=hit / jnp.maximum(opacity, 1e-6), normals=sums[:, 5:], orientation=orientation)
