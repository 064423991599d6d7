"""Volume rendering with a fixed budget of field evaluations: pack, evaluate, composite.

Candidate samples lie evenly on every ray. Candidates inside the bounding ball and in occupied cells are packed,
nearest first, into an array of fixed size for each view, and the field is evaluated on these arrays only. Shapes stay
static, rays past the object cost nothing, and a view does not depend on the other views of the batch.
"""
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sds_jax.fields.field import with_difference_normals, with_normals
from sds_jax.prng import as_threefry
from sds_jax.rendering import compositing, occupancy, sampling, shading
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.rendering.batching import any_of_batch
from sds_jax.types import Array, Camera, FieldFn, FieldOutput, Params, Rays, RenderOutput
from sds_jax.views.cameras import camera_rays
from sds_jax.views.lights import Shading


@dataclasses.dataclass(frozen=True)
class RenderOptions:
  """Render options, static at compile time.

  Attributes:
    bound: radius of the ball around the scene, world units.
    candidates: S, candidate samples on each ray, with spacing 2 bound / S.
    samples: K <= S, field evaluations per ray, averaged over the rays of a view: a view of R rays has a budget of K R.
    normals: "none", "analytic" or "difference" (forward differences). Shading needs normals.
    difference_step: width of the differences, world units.
    occupied_depth: cells with an optical depth over one spacing below `occupied_depth` are skipped (instant-ngp: 0.01).
    few: a second budget K, smaller than `samples`, for steps in which every view's samples fit: on CPUs, passes over
      mostly empty arrays cost as much as the field. None on accelerators, whose programs should not branch.
    block_points: points per block of the field's evaluation. Blocks are recomputed in the backward pass, so that
      activations stay in cache; blocks without samples are skipped. None on accelerators: a single block, nothing
      recomputed.
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
  """Renders rays; differentiable in `params`.

  Args:
    field, params: the field and the field's parameters.
    rays: [R], ordered by view.
    background: [R, 3], colours behind the object.
    jitter: [R] in [0, 1), the position of each ray's samples within their intervals; None for midpoints.
    options: static.
    grid: occupancy over [-bound, bound]^3; None for the whole ball.
    light: [R, 3] light positions, world units; needed with `shade`.
    shade: the shading of the training step; None for bare albedo, without light or normals.
    views: number of views; each view has R / views rays and a budget of its own.

  Returns:
    RenderOutput of [R], and the fraction [] of samples beyond the budget (the farthest ones are dropped), averaged over
    the views; 0 for a view without samples.

  Raises:
    ValueError: `shade` is given without a light or with options.normals="none".
  """
  if shade is not None and (light is None or options.normals == "none"):
    raise ValueError("shading needs a light and options.normals other than 'none'")
  count = rays.origins.shape[0]
  jitter = jnp.full((count,), 0.5, rays.origins.dtype) if jitter is None else jitter
  distances, widths = sampling.even_steps(rays, options.bound, options.candidates, jitter)
  # Sample-major [S, R / V] within a view: packing in this order drops the farthest samples of all rays first.
  wanted = wanted_samples(rays, distances, grid, options).reshape(-1, views, count // views)
  wanted = wanted.swapaxes(0, 1)  # [V, S, R / V]

  def within(budget: int) -> tuple[RenderOutput, Array]:
    return _render_packed(field, params, rays, background, distances, widths, wanted, budget * count // views, options,
                          light, shade)

  if options.few is None:
    return within(options.samples)
  # `any_of_batch` keeps the cond a branch when scenes are vmapped.
  most = jnp.max(jnp.sum(wanted, axis=(1, 2), dtype=jnp.int32))
  return jax.lax.cond(any_of_batch(most > options.few * (count // views)),
                      lambda: within(options.samples), lambda: within(options.few))


def _render_packed(field: FieldFn, params: Params, rays: Rays, background: Array, distances: Array, widths: Array,
                   wanted: Array, budget: int, options: RenderOptions, light: Array | None,
                   shade: Shading | None) -> tuple[RenderOutput, Array]:
  """Renders rays with `budget` samples per view.

  The arguments are those of `render_rays`, and `distances` [S, R] and `widths` [R] of `sampling.even_steps`, and
  `wanted` bool [V, S, R / V] of `wanted_samples`.
  """
  count, pixels = rays.origins.shape[0], wanted.shape[2]
  place, kept, overflow = jax.vmap(lambda mask: occupancy.pack(mask.reshape(-1), budget))(wanted)
  valid = (jnp.arange(budget, dtype=jnp.int32)[None] < kept[:, None]).reshape(-1)
  # Unused places read ray 0 and write nowhere (index out of range), so that every array keeps its static size.
  first = jnp.arange(wanted.shape[0], dtype=jnp.int32)[:, None] * pixels
  ray = jnp.where(valid, (first + place % pixels).reshape(-1), 0)
  index = jnp.where(valid, (place // pixels).reshape(-1) * count + ray, distances.size)
  t = distances.reshape(-1).at[index].get(mode="fill", fill_value=0.0)
  points = (rays.origins[ray] + t[:, None] * rays.directions[ray]) * valid[:, None].astype(t.dtype)
  # No gradient flows to the sample positions: rays and jitter are not learnt.
  out, normals = _evaluate(field, params, jax.lax.stop_gradient(points), valid, options)

  depths = jnp.where(valid, out.density, 0.0) * widths[ray]
  # The weights need each ray's samples in order, so scatter the optical depths back to [S, R] and gather the weights.
  table = jnp.zeros((distances.size,), depths.dtype).at[index].set(depths, mode="drop", unique_indices=True)
  weight = compositing.weights(table.reshape(distances.shape)).reshape(-1).at[index].get(mode="fill", fill_value=0.0)
  colour = out.albedo if shade is None else shading.shade(out.albedo, normals, points, light[ray], shade)
  return _composite(weight, colour, t, normals, rays, ray, background), jnp.mean(overflow)


def render_views(field: FieldFn, params: Params, cameras: Camera, height: int, width: int, background: Array,
                 keys: Array | None = None, *, options: RenderOptions = RenderOptions(), grid: Occupancy | None = None,
                 light: Array | None = None, shade: Shading | None = None) -> tuple[RenderOutput, Array]:
  """Renders images [B, H, W] of cameras [B].

  The arguments not listed are those of `render_rays`. Each view has a sample budget of its own.

  Args:
    cameras: [B].
    background: [B, H, W, 3].
    keys: [B], a key for each view, consumed to jitter the samples; None for no jitter.
    light: [B, 3], world units.

  Returns:
    The values of `render_rays`, with leading axes [B, H, W] instead of [R].
  """
  views, pixels = cameras.focal.shape[0], height * width
  rays = jax.vmap(lambda camera: camera_rays(camera, height, width))(cameras)
  rays = jax.tree.map(lambda x: x.reshape(-1, 3), rays)
  draw = lambda key: jax.random.uniform(as_threefry(key), (pixels,))  # noqa: E731
  jitter = None if keys is None else jax.vmap(draw)(keys).reshape(-1)
  light = None if light is None else jnp.repeat(light, pixels, axis=0, total_repeat_length=views * pixels)
  out, overflow = render_rays(field, params, rays, background.reshape(-1, 3), jitter, options=options, grid=grid,
                              light=light, shade=shade, views=views)
  return jax.tree.map(lambda x: x.reshape(views, height, width, *x.shape[1:]), out), overflow


def render_image(field: FieldFn, params: Params, camera: Camera, height: int, width: int, background: Array, *,
                 options: RenderOptions = RenderOptions(), grid: Occupancy | None = None, light: Array | None = None,
                 shade: Shading | None = None, rows: int = 64) -> RenderOutput:
  """Renders a single image [H, W] without jitter and budget.

  The function is meant for outputs and not for gradients: `rows` rows are rendered at a time, to bound the memory.
  `background` is [H, W, 3], `light` [3] in world units; the other arguments are those of `render_rays`.
  """
  options = dataclasses.replace(options, samples=options.candidates, few=None)
  all_rays = camera_rays(camera, height, width)
  chunks = -(-height // rows)

  def chunked(x):
    x = jnp.pad(x, [(0, chunks * rows - height), (0, 0), (0, 0)], mode="edge")
    return x.reshape(chunks, rows * width, 3)

  def one(chunk):
    rays, behind = chunk
    lights = None if light is None else jnp.broadcast_to(light[None], behind.shape)
    return render_rays(field, params, rays, behind, options=options, grid=grid, light=lights, shade=shade)[0]

  out = jax.lax.map(one, (jax.tree.map(chunked, all_rays), chunked(background)))
  return jax.tree.map(lambda x: x.reshape(chunks * rows, width, *x.shape[2:])[:height], out)


def wanted_samples(rays: Rays, distances: Array, grid: Occupancy | None, options: RenderOptions) -> Array:
  """Returns the mask [S, R] of the samples to evaluate.

  Such samples are in front of the camera, inside the ball and in an occupied cell.
  """
  points = tuple(rays.origins[None, :, axis] + distances * rays.directions[None, :, axis] for axis in range(3))
  wanted = (distances > 0) & (sum(p * p for p in points) < options.bound**2)
  if grid is None:
    return wanted
  spacing = 2 * options.bound / options.candidates
  cells = occupancy.occupied_cells(grid, options.occupied_depth / spacing)
  return wanted & occupancy.look_up(cells, points, options.bound)


def _evaluate(field: FieldFn, params: Params, points: Array, valid: Array,
              options: RenderOptions) -> tuple[FieldOutput, Array]:
  """Evaluates the field and the normals at `points` [N, 3].

  Works in blocks of options.block_points. Blocks without a `valid` [N] point give zeros.
  """

  def evaluate(block_points):
    if options.normals == "analytic":
      return with_normals(field, params, block_points)
    if options.normals == "difference":
      return with_difference_normals(field, params, block_points, options.difference_step)
    return field(params, block_points), jnp.zeros_like(block_points)

  block, total = options.block_points, points.shape[0]
  if block is None or total <= block:
    return evaluate(points)

  def zeros(block_points):
    # Under shard_map both branches must vary over the same devices, so the zero is derived from the points.
    zero = jnp.sum(block_points) * 0
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) + zero, jax.eval_shape(evaluate, block_points))

  # Recomputed in the backward pass, so that only the activations of a single block are held at a time.
  @jax.checkpoint
  def evaluate_block(any_valid, block_points):
    return jax.lax.cond(any_valid, evaluate, zeros, block_points)

  blocks = -(-total // block)
  padded = jnp.pad(points, [(0, blocks * block - total), (0, 0)]).reshape(blocks, block, 3)
  any_valid = jnp.any(jnp.pad(valid, (0, blocks * block - total)).reshape(blocks, block), axis=1)
  out = jax.lax.map(lambda args: evaluate_block(any_of_batch(args[0]), args[1]), (any_valid, padded))
  return jax.tree.map(lambda x: x.reshape(blocks * block, *x.shape[2:])[:total], out)


def _composite(weight: Array, colour: Array, t: Array, normals: Array, rays: Rays, ray: Array,
               background: Array) -> RenderOutput:
  """Composites packed samples [N] into pixels [R]."""

  def total(values):
    return jax.ops.segment_sum(weight[:, None] * values, ray, num_segments=background.shape[0])

  # One segment sum for all channels instead of one each.
  sums = total(jnp.concatenate([colour, jnp.ones_like(t)[:, None], t[:, None], normals], axis=-1))
  opacity, hit = sums[:, 3], sums[:, 4]
  facing_away = jnp.maximum(jnp.sum(normals * rays.directions[ray], axis=-1), 0.0)
  # The weights get no gradient (as in DreamFusion): the penalty turns normals and does not thin the density.
  orientation = jax.ops.segment_sum(
    jax.lax.stop_gradient(weight) * facing_away**2, ray, num_segments=background.shape[0])
  return RenderOutput(
    rgb=sums[:, :3] + (1 - opacity)[:, None] * background, opacity=opacity,
    # An empty ray has the depth 0 instead of 0 / 0.
    depth=hit / jnp.maximum(opacity, 1e-6), normals=sums[:, 5:], orientation=orientation)
