"""The parts of a step, each jitted alone: seconds, FLOPs, and the share of the machine's matrix product.

A part alone may be slower than within the step, because its results go through memory and XLA fuses nothing across
parts. The parts therefore need not add up to the step.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sds_jax import compilation
from sds_jax.benchmarks import flops, timing
from sds_jax.benchmarks.step_draws import StepDraws
from sds_jax.benchmarks.workload import Workload
from sds_jax.diffusion import guidance
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.generators.field import FieldGenerator
from sds_jax.rendering import occupancy, render, sampling
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params, Rays
from sds_jax.views import cameras, lights

MODES = {"albedo": lights.ALBEDO, "shaded": lights.LAMBERTIAN}
"""Name -> shading mode."""


def render_views(generator: FieldGenerator, params: Params, grid: Any, draws: StepDraws) -> Array:
  """Renders the images [V, H, W, 3] of a step by the function that the step calls."""
  return generator.render_step(params, grid, draws.cameras, draws.shading, draws.keyed)[0].rgb


def count_wanted_samples(generator: FieldGenerator, grid: Any, draws: StepDraws) -> Array:
  """Counts the samples [] int32 that the step would evaluate without a budget."""
  size, options = generator.size, generator.options
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, size, size))(draws.cameras)
  rays = Rays(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3))
  distances, _ = sampling.even_steps(rays, options.bound, options.candidates, draws.jitter)
  return jnp.sum(render.wanted_samples(rays, distances, grid, options), dtype=jnp.int32)


def sample_counts(work: Workload, state: TrainState, draws: StepDraws) -> dict[str, float]:
  """Counts the samples of the step from `state`.

  Returns:
    dict(budget, wanted, kept, blocks_run); blocks_run is the fraction of blocks that are evaluated.
  """
  generator, block = work.generator, work.generator.options.block_points
  budget = work.settings.training.views * generator.size**2 * generator.options.samples
  count = jax.jit(lambda grid, draws: count_wanted_samples(generator, grid, draws))
  wanted = int(count(state.occupancy, draws))
  kept = min(wanted, budget)
  # The last, partly filled block is evaluated as a whole, hence the ceilings (-(-a // b)).
  blocks_run = 1.0 if block is None or budget <= block else -(-kept // block) / -(-budget // block)
  return dict(budget=budget, wanted=wanted, kept=kept, blocks_run=blocks_run)


def measure(work: Workload, drawer: Callable[[Array], StepDraws], state: TrainState,
            repeats: int) -> dict[str, dict[str, Any]]:
  """Times the parts of the step from `state`.

  Args:
    work: the workload.
    drawer: of `step_draws.make_drawer`.
    state: where the run stands.
    repeats: number of timed calls of each part.

  Returns:
    {part: summary of its seconds, and `flops` where the part has products}. Skipped blocks count no FLOPs.
  """
  # All parts share the draws of one step, so they see the same rays and samples.
  draws = drawer(state.step)
  rule = flops.filled(sample_counts(work, state, draws)["blocks_run"])
  measured: dict[str, dict[str, Any]] = {"draws": timing.summary(timing.repeat(drawer, state.step, repeats=repeats))}
  for mode in modes(work.generator):
    # The mode is fixed: a step draws it, and shaded renders cost more than unshaded ones.
    lit = dataclasses.replace(draws, shading=draws.shading.replace(mode=jnp.int32(MODES[mode])))
    for name, part in rendering_parts(only_mode(work.generator, mode)).items():
      args = (state.params, state.occupancy, lit)
      measured[f"render {mode}, {name}"] = dict(_timed(part, *args, repeats=repeats),
                                                flops=flops.count(part, *args, branch=rule))
  # eps stands for z_t: the values do not change the time of a network.
  predict, args = _prediction(work), (work.prior_params, draws.eps, draws.t, draws.cond, draws.progress)
  measured["prior"] = dict(_timed(predict, *args, repeats=repeats), flops=flops.count(predict, *args))
  measured["prior"]["images"] = 2 * draws.eps.shape[0]  # with the text and without
  if "vae" in work.prior_params:
    encode = _encoding(work)
    images = jax.jit(lambda *args: render_views(work.generator, *args))(state.params, state.occupancy, draws)
    args = (work.prior_params, images, work.key)
    measured["encoder, forward and backward"] = dict(_timed(encode, *args, repeats=repeats),
                                                     flops=flops.count(encode, *args))
  # Parameters stand for gradients, which have their shapes.
  measured["optimizer"] = _timed(_optimisation(work), state.params, state.params, state.opt_state, repeats=repeats)
  if state.occupancy is not None:
    update, args = _occupancy_update(work), (state.occupancy, state.params, work.key, state.step)
    measured["occupancy update"] = dict(_timed(update, *args, repeats=repeats), flops=flops.count(update, *args),
                                        every=work.settings.occupancy.every)
  return measured


def _timed(part: Callable, *args: Any, repeats: int) -> dict[str, Any]:
  compiled = jax.jit(part, compiler_options=compilation.unet_options())
  return timing.summary(timing.repeat(compiled, *args, repeats=repeats))


def modes(generator: FieldGenerator) -> tuple[str, ...]:
  """Returns the names of MODES that the steps of a run have."""
  return tuple(MODES) if generator.lights.shaded > 0 else ("albedo",)


def only_mode(generator: FieldGenerator, mode: str) -> FieldGenerator:
  """Returns the generator for renders of one mode.

  Without lights the renderer has no branch with normals, so the counts of FLOPs of unshaded renders do not contain that
  branch.
  """
  if mode == "shaded":
    return generator
  return dataclasses.replace(generator, lights=dataclasses.replace(generator.lights, shaded=0.0))


def rendering_parts(generator: FieldGenerator) -> dict[str, Callable]:
  """Returns rays, samples, field and compositing as functions (params, grid, draws).

  "forward" returns the images; "forward and backward" also the gradient for cotangents of 1.
  """
  def forward(params, grid, draws):
    return render_views(generator, params, grid, draws)

  def forward_and_backward(params, grid, draws):
    images, pullback = jax.vjp(lambda p: render_views(generator, p, grid, draws), params)
    return images, pullback(jnp.ones_like(images))[0]

  return {"forward": forward, "forward and backward": forward_and_backward}


def _prediction(work: Workload) -> Callable:
  """Returns the guided noise prediction.

  One call of the U-Net on twice the images.
  """
  d = work.settings.distillation

  def predict(prior_params, z, t, cond, progress):
    scale = schedule_value(d.guidance_scale, progress)
    return guidance.guided(work.prior.denoise, d.guidance_convention, scale)(prior_params, z, t, cond)

  return predict


def _encoding(work: Workload) -> Callable:
  """Returns the encoder with its gradient for cotangents of 1."""
  def forward_and_backward(prior_params, images, key):
    x, pullback = jax.vjp(lambda images: work.prior.encode(prior_params, images, key), images)
    return x, pullback(jnp.ones_like(x))[0]

  return forward_and_backward


def _optimisation(work: Workload) -> Callable:
  optimizer = work.optimizer

  def update(grads, params, opt_state):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return update


def _occupancy_update(work: Workload) -> Callable:
  """Returns the update of the occupancy grid.

  As at a step where the update is due.
  """
  o, generator = work.settings.occupancy, work.generator

  def update(grid, params, key, step):
    return occupancy.update(grid, generator.field.apply, params["field"], key, step // o.every,
                            bound=generator.options.bound, decay=o.decay)

  return update
