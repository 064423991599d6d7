"""The same step in PyTorch: first that it computes the same, then how long it takes, in turns with ours.

What is equal: prior (diffusers' `UNet2DConditionModel` on the same folder), field parameters, Adam's moments,
occupancy grid, cameras, lights, background, jitter, t and noise. Both sides choose their samples themselves, since that
is part of a step; the budget is the same. Both update the occupancy grid when it is due. What favours PyTorch: what is
random is drawn by JAX within its step and handed to PyTorch ready-made, and PyTorch evaluates just the wanted samples.

PyTorch runs eagerly, as diffusers does, in a process of its own, so that the threads of one side are asleep while the
other side works, and memory can be told apart. Every turn starts from the same state, with a step that is not counted;
nor is the first turn of each side.
"""
from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sds_jax import compilation
from sds_jax.benchmarks import parts, timing, workload
from sds_jax.benchmarks.workload import Draws, Workload
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.weightings import WEIGHTINGS
from sds_jax.priors.prior import unet_input
from sds_jax.priors.sources import shipped_folder
from sds_jax.training import step as step_lib
from sds_jax.training.config import scalar_spec
from sds_jax.training.state import TrainState
from sds_jax.types import Params
from sds_jax.views.lights import ALBEDO, TEXTURELESS

TOLERANCES = dict(image=1e-4, gradient=1e-3, update=1e-2)
"""Largest relative errors of PyTorch's image, gradient of the parameters and their change in the step."""


class PeerError(RuntimeError):
  """The comparison cannot be made; the message says why."""


def check_installed() -> None:
  """Raises PeerError, naming the extra, unless torch and diffusers are there."""
  missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
  if missing:
    raise PeerError(f"--peer=torch needs {' and '.join(missing)}, not installed here: pip install 'sds_jax[parity]'")


def check_supported(config: ml_collections.FrozenConfigDict) -> None:
  """Raises PeerError for settings that the step in PyTorch does not have."""
  _check(
      ("field.name", config.field.name, ("mlp",)), ("background.name", config.background.name, ("plain", "white")),
      ("render.normals", config.render.normals, ("analytic",)), ("optimizer.name", config.optimizer.name, ("adam",)),
      ("optimizer.clip_norm", config.optimizer.clip_norm, (0.0,)), ("prior.dtype", config.prior.dtype, ("float32",)))
  check_distillation(config)


def check_distillation(config: ml_collections.FrozenConfigDict) -> None:
  """Raises PeerError for settings of the distillation that PyTorch's side does not have."""
  _check(
      ("distillation.estimator", config.distillation.estimator, ("sds",)),
      ("distillation.perp_neg", config.distillation.perp_neg, ("none",)),
      ("distillation.guidance_rescale", config.distillation.guidance_rescale, ((0.0,),)),
      ("distillation.clip_norm", config.distillation.clip_norm, (config.distillation.clip_norm[:1],)))


def _check(*facts: tuple[str, Any, tuple[Any, ...]]) -> None:
  for name, value, legal in facts:
    if value not in legal:
      raise PeerError(f"config.{name}={value!r}: the step in PyTorch only knows {', '.join(map(repr, legal))}")


def payload(work: Workload, state: TrainState, block: int) -> dict[str, Any]:
  """What a `torch_step.TorchStep` is made of: plain values and numpy arrays.

  Raises:
    PeerError: images are not rendered at the prior's size, which the step in PyTorch would have to resize.
  """
  config, p = work.config, work.config.prior
  size = work.prior.image_size
  if (config.render.height, config.render.width) != (size, size):
    raise PeerError(f"the step in PyTorch renders at the prior's {size}x{size} only")
  folder = Path(p.path) if p.path else shipped_folder() if p.name == "shapeworld" else Path(p.name)
  o = config.occupancy
  moments = {name: layers(optax.tree_utils.tree_get(state.opt_state, name)["field"]) for name in ("mu", "nu")}
  return dict(
    render=render_settings(work.scene, block), unet=str(folder / "unet"), prediction=work.prior.prediction_type,
    unshuffle=size // work.prior.x_shape[0], adam=(config.optimizer.b1, config.optimizer.b2, config.optimizer.eps),
    clip_norm=config.distillation.clip_norm[0], layers=layers(state.params["field"]), **moments, count=int(state.step),
    occupancy=dict(every=o.every, decay=o.decay, start_step=o.start_step, shares=4),
    grid=None if state.occupancy is None else np.asarray(state.occupancy.density))


def render_settings(scene: step_lib.Scene, block: int) -> dict[str, Any]:
  """The attributes of `torch_render.Settings`."""
  f, r, options = scene.config.field, scene.config.render, scene.options
  return dict(height=r.height, width=r.width, candidates=options.candidates, samples=options.samples, bound=f.bound,
              occupied_depth=options.occupied_depth, density=f.density, blob=f.blob, blob_scale=f.blob_scale,
              blob_radius=f.blob_radius, density_bias=f.density_bias, octaves=f.mlp.num_octaves,
              activation=f.mlp.activation, block=block)


def layers(params: Params) -> list[tuple[np.ndarray, np.ndarray]]:
  """The layers of an `MLPField`, first to last: (kernel [out, in], bias [out])."""
  return [(np.array(params[f"Dense_{i}"]["kernel"].T), np.array(params[f"Dense_{i}"]["bias"]))
          for i in range(len(params))]


def inputs(work: Workload, step: int, d: Draws) -> dict[str, Any]:
  """What step number `step` draws, `d`, as PyTorch wants it: numpy arrays (channels first) and plain values."""
  config = work.config
  arrays = dict(position=d.cameras.position, rotation=d.cameras.rotation, focal=d.cameras.focal,
                background=d.background, jitter=d.jitter, light=d.light)
  camera = d.cond["cond"].get("camera")
  if camera is not None:  # what the network is told of it: the vector, and the channels that go with z_t
    rays = unet_input(d.eps, camera, work.prior.ray_dim)[..., d.eps.shape[-1]:]
    arrays |= dict(camera=camera, rays=rays.transpose(0, 3, 1, 2))
  weights = {name: float(schedule_value(scalar_spec(config.loss[name]), d.progress))
             for name in ("orientation", "opacity", "entropy")}
  mode = int(d.shading.mode)
  return dict({name: np.array(value) for name, value in arrays.items()}, **distillation_inputs(work, d), **weights,
              step=step, shaded=mode != ALBEDO, textureless=mode == TEXTURELESS, ambient=float(d.shading.ambient),
              diffuse=float(d.shading.diffuse), learning_rate=_learning_rate(config, step))


def distillation_inputs(work: Workload, d: Draws) -> dict[str, Any]:
  """The part of `inputs` that has to do with the prior."""
  config, schedule = work.config, work.prior.schedule
  arrays = dict(
    t=d.t, eps=d.eps.transpose(0, 3, 1, 2), alpha=schedule.alpha[d.t], sigma=schedule.sigma[d.t],
    weight=WEIGHTINGS[config.distillation.weighting](schedule, d.t),
    text=jnp.concatenate([d.cond["cond"]["text"], d.cond["uncond"]["text"]]))
  return dict({name: np.array(value) for name, value in arrays.items()},
              sds=float(schedule_value(scalar_spec(config.loss.sds), d.progress)),
              guidance=float(workload.guidance_scale(config, d.progress)))


def _learning_rate(config: ml_collections.FrozenConfigDict, step: int) -> float:
  """As in `training.state.make_optimizer`."""
  o, rate = config.optimizer, config.optimizer.learning_rate
  return float(optax.warmup_cosine_decay_schedule(
    0.0 if o.warmup_steps else rate, rate, o.warmup_steps, config.training.steps, rate * o.final_fraction)(step))


def own_step(work: Workload) -> Callable[[TrainState, Draws], dict[str, Any]]:
  """A function (state, its draws) -> dict(image, gradient, layers) of the trainer's step, as `torch_step.check` has it.

  The step is asked for its gradient by an optimiser that keeps what it is given.
  """
  real = work.scene.optimizer

  def update(grads, kept, params):
    updates, opt_state = real.update(grads, kept[1], params)
    return updates, (grads, opt_state)

  spy = dataclasses.replace(work.scene, optimizer=optax.GradientTransformation(real.init, update))
  step = jax.jit(step_lib.make_step(spy, work.prior))
  image = jax.jit(lambda *args: parts.image(work, *args))

  def run(state: TrainState, draws: Draws) -> dict[str, Any]:
    after = step(state.replace(opt_state=(state.params, state.opt_state)), *work.fixed)[0]
    return dict(image=np.asarray(image(state.params, state.occupancy, draws)),
                gradient=layers(after.opt_state[0]["field"]), layers=layers(after.params["field"]))

  return run


def errors(ours: dict[str, Any], theirs: dict[str, Any],
           before: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
  """Relative errors dict(image, gradient, update): the largest difference of an image over its largest value, and the
  norm of the difference over the norm for all parameters taken together."""
  flat = lambda layers: np.concatenate([a.ravel() for pair in layers for a in pair])  # noqa: E731
  relative = lambda got, expected: float(np.linalg.norm(got - expected) / np.linalg.norm(expected))  # noqa: E731
  start = flat(before)
  return dict(
    image=float(np.abs(theirs["image"] - ours["image"]).max() / np.abs(ours["image"]).max()),
    gradient=relative(flat(theirs["gradient"]), flat(ours["gradient"])),
    update=relative(flat(theirs["layers"]) - start, flat(ours["layers"]) - start))


def check_errors(found: dict[str, float]) -> None:
  """Raises PeerError when one is beyond its tolerance (or is no number)."""
  for name, largest in TOLERANCES.items():
    if not found[name] <= largest:
      raise PeerError(f"PyTorch does not compute the same: relative error of the {name} {found[name]:.1e}, allowed "
                      f"{largest:.0e}; no times are compared")


def compare(work: Workload, drawn: Callable[[jax.Array], Draws], compiled: Callable, state: TrainState, *, steps: int,
            rounds: int, block: int = 0) -> dict[str, Any]:
  """Checks, then times both sides in turns.

  Args:
    work, drawn, compiled: the workload, its `workload.drawer` and its executable step.
    state: what every turn starts from.
    steps: of a turn.
    rounds: turns of each side.
    block: points that PyTorch's field sees at a time; 0: all at once.

  Returns:
    dict(errors, threads, jax, torch, ratios, torch_peak_memory_bytes): `jax` and `torch` as `workload.by_mode`; ratios
    of their medians, torch / JAX, by mode.

  Raises:
    PeerError: PyTorch does not compute the same, or its process ended.
  """
  first = int(state.step)
  given = [inputs(work, step, drawn(jnp.int32(step))) for step in range(first, first + steps + 1)]
  content, threads = payload(work, state, block), timing.cpu_count()
  found: dict[str, list] = dict(jax=[], torch=[])
  with Process("torch_step", content, threads) as process:
    error = errors(own_step(work)(state, drawn(state.step)), process.ask("check", given[0]), content["layers"])
    check_errors(error)
    for turn in range(rounds + 1):
      fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
      own = workload.run_steps(work, compiled, fresh, steps + 1)[1]
      theirs = [dict(seconds=seconds, shaded=one["shaded"])
                for seconds, one in zip(process.ask("time", given), given)]
      if turn:  # PyTorch takes some steps to get going
        found["jax"] += own[1:]
        found["torch"] += theirs[1:]
    memory = process.ask("stop", None)
  both = {name: workload.by_mode(records) for name, records in found.items()}
  ratios = {mode: both["torch"][mode]["median_s"] / own["median_s"] if own["count"] else None
            for mode, own in both["jax"].items()}
  return dict(errors=error, threads=threads, block=block, **both, ratios=ratios, torch_peak_memory_bytes=memory)


class Process:
  """`serve` of a module of benchmarks (torch_step, torch_prior) in a process of its own, as a context manager."""

  def __init__(self, module: str, content: dict[str, Any], threads: int):
    context = multiprocessing.get_context("spawn")
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, module, content, threads), daemon=True)
    self._process.start()
    theirs.close()

  def __enter__(self) -> Process:
    return self

  def __exit__(self, *_: Any) -> None:
    self._connection.close()
    self._process.join(timeout=10)
    self._process.kill()

  def ask(self, what: str, argument: Any) -> Any:
    """The answer to one request. Raises PeerError when the process has ended instead."""
    try:
      self._connection.send((what, argument))
      return self._connection.recv()
    except (EOFError, ConnectionError) as error:
      raise PeerError("the PyTorch process ended; what it printed above says why") from error


def _serve(connection: Any, module: str, content: dict[str, Any], threads: int) -> None:
  """In the new process only: here torch is imported."""
  compilation.disable_malloc_trim()  # as on our side
  importlib.import_module(f"sds_jax.benchmarks.{module}").serve(connection, content, threads)
