"""The parts of a step, each jitted on its own: seconds, FLOPs, and the share of the machine's matrix product.

Alone, a part may be slower than within the step (its results go through memory) and shows nothing of what XLA fuses
across parts, so they need not add up to the step.
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
from sds_jax.benchmarks.workload import Draws, Workload
from sds_jax.diffusion import guidance
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.rendering import occupancy, render, sampling
from sds_jax.training import step as step_lib
from sds_jax.training.config import scalar_spec
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params, Rays
from sds_jax.views import cameras, lights

MODES = {"albedo": lights.ALBEDO, "shaded": lights.LAMBERTIAN}


def image(work: Workload, params: Params, grid: Any, draws: Draws) -> Array:
  """The images [V, H, W, 3] that a step renders, with the trainer's own function."""
  index = jnp.arange(work.config.training.views)
  return step_lib._render(work.scene, params, grid, draws.cameras, draws.shading, draws.render_key, index,
                          draws.progress)[0].rgb


def wanted_samples(work: Workload, grid: Any, draws: Draws) -> Array:
  """How many samples the step would evaluate if its budget had no end [] int32."""
  height, width = work.config.render.height, work.config.render.width
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, height, width))(draws.cameras)
  rays = Rays(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3))
  options = work.scene.options
  distances, _ = sampling.even_steps(rays, options.bound, options.candidates, draws.jitter)
  return jnp.sum(render._wanted(rays, distances, grid, options), dtype=jnp.int32)


def sample_counts(work: Workload, state: TrainState, draws: Draws) -> dict[str, float]:
  """dict(budget, wanted, kept, blocks_run): samples of the step from `state`; blocks_run is a fraction in [0, 1]."""
  config = work.config
  budget = config.training.views * config.render.height * config.render.width * work.scene.options.samples
  wanted = int(jax.jit(lambda *args: wanted_samples(work, *args))(state.occupancy, draws))
  kept, block = min(wanted, budget), work.scene.options.block_points
  run = 1.0 if block is None or budget <= block else -(-kept // block) / -(-budget // block)
  return dict(budget=budget, wanted=wanted, kept=kept, blocks_run=run)


def measure(work: Workload, drawn: Callable[[Array], Draws], state: TrainState,
            repeats: int) -> dict[str, dict[str, Any]]:
  """{part: summary of its seconds, and `flops` where it has any}, of the step from `state`.

  `drawn` is of `workload.drawer`. In blocks that are skipped no FLOPs are counted.
  """
  draws = drawn(state.step)
  rule = flops.filled(sample_counts(work, state, draws)["blocks_run"])
  found: dict[str, dict[str, Any]] = {"draws": timing.summary(timing.repeat(drawn, state.step, repeats=repeats))}
  for mode in _modes(work):
    lit = dataclasses.replace(draws, shading=draws.shading.replace(mode=jnp.int32(MODES[mode])))
    for name, part in _render_parts(_only(work, mode)).items():
      args = (state.params, state.occupancy, lit)
      found[f"render {mode}, {name}"] = dict(_timed(part, *args, repeats=repeats),
                                             flops=flops.count(part, *args, branch=rule))
  z, args = draws.eps, (work.prior_params, draws.eps, draws.t, draws.cond, draws.progress)
  found["prior"] = dict(_timed(_prior(work), *args, repeats=repeats), flops=flops.count(_prior(work), *args))
  found["prior"]["images"] = 2 * z.shape[0]  # with the text and without
  if "vae" in work.prior_params:
    rendered = jax.jit(lambda *args: image(work, *args))(state.params, state.occupancy, draws)
    args = (work.prior_params, rendered, work.key)
    found["encoder, forward and backward"] = dict(_timed(_encode(work), *args, repeats=repeats),
                                                  flops=flops.count(_encode(work), *args))
  found["optimizer"] = _timed(_optimizer(work), state.params, state.params, state.opt_state, repeats=repeats)
  if state.occupancy is not None:
    args = (state.occupancy, state.params, work.key, state.step)
    found["occupancy update"] = dict(_timed(_look(work), *args, repeats=repeats),
                                     flops=flops.count(_look(work), *args), every=work.config.occupancy.every)
  return found


def _timed(part: Callable, *args: Any, repeats: int) -> dict[str, Any]:
  compiled = jax.jit(part, compiler_options=compilation.unet_options())
  return timing.summary(timing.repeat(compiled, *args, repeats=repeats))


def _modes(work: Workload) -> tuple[str, ...]:
  return tuple(MODES) if work.scene.lights.shaded > 0 else ("albedo",)


def _only(work: Workload, mode: str) -> Workload:
  """The workload whose renders are all of one mode: the scene without lights has no branch with normals."""
  if mode == "shaded":
    return work
  return dataclasses.replace(work, scene=dataclasses.replace(
    work.scene, lights=dataclasses.replace(work.scene.lights, shaded=0.0)))


def _render_parts(work: Workload) -> dict[str, Callable]:
  """Rays, samples, field and compositing; and the same with the gradient of an image's worth of cotangents."""

  def forward(params, grid, draws):
    return image(work, params, grid, draws)

  def both(params, grid, draws):
    rgb, pullback = jax.vjp(lambda p: image(work, p, grid, draws), params)
    return rgb, pullback(jnp.ones_like(rgb))[0]

  return {"forward": forward, "forward and backward": both}


def _prior(work: Workload) -> Callable:
  """The guided noise prediction: one call of the U-Net on twice the images."""
  d = work.config.distillation

  def predict(prior_params, z, t, cond, progress):
    scale = schedule_value(scalar_spec(d.guidance_scale), progress)
    return guidance.guided(work.prior.denoise, d.guidance_convention, scale)(prior_params, z, t, cond)

  return predict


def _encode(work: Workload) -> Callable:
  """Images into the prior's space, and an x's worth of cotangents back to the images."""
  def both(prior_params, rgb, key):
    x, pullback = jax.vjp(lambda rgb: work.prior.encode(prior_params, rgb, key), rgb)
    return x, pullback(jnp.ones_like(x))[0]

  return both


def _optimizer(work: Workload) -> Callable:
  def update(grads, params, opt_state):
    updates, opt_state = work.scene.optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return update


def _look(work: Workload) -> Callable:
  o = work.config.occupancy

  def look(grid, params, key, step):
    return occupancy.update(grid, work.scene.field.apply, params["field"], key, step // o.every,
                            bound=work.config.field.bound, decay=o.decay)

  return look
