"""The same step in PyTorch: first a check that both compute the same, then the seconds of both, in turns.

Equal on both sides: prior (diffusers' `UNet2DConditionModel` on the same folder), field parameters, Adam's moments,
occupancy grid, cameras, lights, background, jitter, t and noise. Both sides choose their samples themselves, under the
same budget, because that choice is part of a step. Both update the occupancy grid when an update is due. Two things
favour PyTorch: JAX draws the random numbers within the step and PyTorch gets them ready-made, and PyTorch evaluates
only the wanted samples.

PyTorch runs eagerly, as diffusers does, in a process of its own. The threads of one side therefore sleep while the
other side works, and the memory of both sides can be told apart. Every turn starts from the same state. The first step
of a turn and the first turn of each side are not counted.
"""
from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sds_jax import compilation
from sds_jax.benchmarks import parts, timing, workload
from sds_jax.benchmarks.step_draws import StepDraws, diffusers_scale
from sds_jax.benchmarks.workload import Workload
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.weightings import WEIGHTINGS
from sds_jax.generators.field import FieldGenerator
from sds_jax.priors.assemble import unet_input
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.settings.field import FieldSettings
from sds_jax.settings.optimizer import OptimizerSettings
from sds_jax.training.program import step_options
from sds_jax.training.state import TrainState
from sds_jax.training.step import make_step
from sds_jax.types import Params
from sds_jax.views.lights import ALBEDO, TEXTURELESS

TOLERANCES = dict(image=1e-4, gradient=1e-3, update=1e-2)
"""Largest relative errors of PyTorch's image, gradient of the parameters and their change in the step."""

Layers = list[tuple[np.ndarray, np.ndarray]]
"""The layers of a field, first to last: (kernel [out, in], bias [out])."""


class PeerError(RuntimeError):
  """Raised when the comparison cannot be made; the message says why."""


def check_installed() -> None:
  """Raises PeerError, naming the extra, unless torch and diffusers are installed."""
  # Looked for, not imported: torch belongs to the other process only.
  missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
  if missing:
    raise PeerError(f"--peer=torch needs {' and '.join(missing)}, not installed here: pip install 'sds_jax[parity]'")


def check_supported(work: Workload) -> None:
  """Raises PeerError for settings that the step in PyTorch does not have."""
  settings = work.settings
  _check(
      ("field.name", settings.field.name, ("mlp",)), ("background.name", settings.background.name, ("plain", "white")),
      ("render.normals", settings.render.normals, ("analytic",)),
      ("optimizer.name", settings.optimizer.name, ("adam",)),
      ("optimizer.clip_norm", settings.optimizer.clip_norm, (0.0,)),
      ("prior.dtype", settings.prior.dtype, ("float32",)), ("camera.group", settings.camera.group, (1,)))
  check_distillation(settings.distillation)


def check_distillation(settings: DistillationSettings) -> None:
  """Raises PeerError for settings of the distillation that PyTorch's side does not have."""
  _check(
      ("distillation.estimator", settings.estimator, ("sds",)), ("distillation.perp_neg", settings.perp_neg, ("none",)),
      ("distillation.guidance_rescale", settings.guidance_rescale, (0.0,)))
  if isinstance(settings.clip_norm, tuple):
    raise PeerError(f"config.distillation.clip_norm={settings.clip_norm!r}: the step in PyTorch has only a constant; "
                    "set one number")


def _check(*facts: tuple[str, Any, tuple[Any, ...]]) -> None:
  for name, value, legal in facts:
    if value not in legal:
      raise PeerError(f"config.{name}={value!r}: the step in PyTorch has only {', '.join(map(repr, legal))}")


def payload(work: Workload, state: TrainState, block: int) -> dict[str, Any]:
  """Returns the arguments of a `torch_step.TorchStep`: plain values and numpy arrays.

  Args:
    work: the workload; its prior is read from a folder.
    state: the start of every turn.
    block: number of points that PyTorch's field gets at a time; 0: all.

  Raises:
    PeerError: images are not rendered at the prior's size, so that the step in PyTorch would have to resize them.
  """
  settings, size = work.settings, work.prior.image_size
  if work.generator.size != size:
    raise PeerError(f"config.render.height={work.generator.size}: the step in PyTorch renders at the prior's size "
                    f"only; set config.render.height and width to {size}")
  o, adam = settings.occupancy, settings.optimizer
  moments = {name: layers(optax.tree_utils.tree_get(state.opt_state, name)["field"]) for name in ("mu", "nu")}
  return dict(
      render=render_settings(settings.field, work.generator, block), unet=str(work.prior.source.folder / "unet"),
      prediction=work.prior.prediction_type, unshuffle=size // work.prior.x_shape[0], adam=(adam.b1, adam.b2, adam.eps),
      clip_norm=settings.distillation.clip_norm, layers=layers(state.params["field"]), **moments, count=int(state.step),
      occupancy=dict(every=o.every, decay=o.decay, start_step=o.start_step, shares=4),
      grid=None if state.occupancy is None else np.asarray(state.occupancy.density))


def render_settings(field: FieldSettings, generator: FieldGenerator, block: int) -> dict[str, Any]:
  """Returns the attributes of `torch_render.RendererSettings`."""
  options = generator.options
  return dict(height=generator.size, width=generator.size, candidates=options.candidates, samples=options.samples,
              bound=options.bound, occupied_depth=options.occupied_depth, density=field.density, blob=field.blob,
              blob_scale=field.blob_scale, blob_radius=field.blob_radius, density_bias=field.density_bias,
              octaves=field.mlp.num_octaves, activation=field.mlp.activation, block=block)


def layers(params: Params) -> Layers:
  """Returns the layers of an `MLPField`."""
  return [(np.array(params[f"Dense_{i}"]["kernel"].T), np.array(params[f"Dense_{i}"]["bias"]))
          for i in range(len(params))]


def torch_inputs(work: Workload, step: int, draws: StepDraws) -> dict[str, Any]:
  """Returns the draws of step number `step` for PyTorch.

  The draws are numpy arrays with channels first, and plain values.
  """
  loss, shading, mode = work.settings.loss, draws.shading, int(draws.shading.mode)
  arrays = dict(position=draws.cameras.position, rotation=draws.cameras.rotation, focal=draws.cameras.focal,
                background=draws.background, jitter=draws.jitter, light=draws.light)
  camera = draws.cond["cond"].get("camera")
  if camera is not None:  # the prior's condition: the vector, and the channels that are concatenated with z_t
    # The channels behind those of x are the rays; eps only lends its shape.
    rays = unet_input(draws.eps, camera, work.prior.ray_dim)[..., draws.eps.shape[-1]:]
    arrays |= dict(camera=camera, rays=rays.transpose(0, 3, 1, 2))
  weights = {name: float(schedule_value(getattr(loss, name), draws.progress))
             for name in ("orientation", "opacity", "entropy")}
  return dict({name: np.array(value) for name, value in arrays.items()}, **torch_distillation_inputs(work, draws),
              **weights, step=step, shaded=mode != ALBEDO, textureless=mode == TEXTURELESS,
              ambient=float(shading.ambient), diffuse=float(shading.diffuse),
              learning_rate=_learning_rate(work.settings.optimizer, work.settings.training.steps, step))


def torch_distillation_inputs(work: Workload, draws: StepDraws) -> dict[str, Any]:
  """Returns the part of `torch_inputs` that the prior's part of a step needs."""
  d, schedule, t = work.settings.distillation, work.prior.schedule, draws.t
  arrays = dict(
      t=t, eps=draws.eps.transpose(0, 3, 1, 2), alpha=schedule.alpha[t], sigma=schedule.sigma[t],
      weight=WEIGHTINGS[d.weighting](schedule, t),
      text=_both_sides(draws.cond, "text"))
  if work.prior.time_ids is not None:  # SDXL's U-Net takes a vector of the text and the sizes
    pooled = _both_sides(draws.cond, "pooled")
    arrays |= dict(pooled=pooled, time_ids=np.tile(np.asarray(work.prior.time_ids, np.float32), (len(pooled), 1)))
  return dict({name: np.array(value) for name, value in arrays.items()},
              sds=float(schedule_value(work.settings.loss.sds, draws.progress)),
              guidance=float(diffusers_scale(d, draws.progress)))


def _both_sides(cond: dict[str, Any], name: str) -> jax.Array:
  """Returns a condition of the images with the prompt, then that of the images without it."""
  return jnp.concatenate([cond["cond"][name], cond["uncond"][name]])


def _learning_rate(settings: OptimizerSettings, steps: int, step: int) -> float:
  """Returns the learning rate at a step of a run of `steps`.

  The rate is that of `training.optimizer.make_optimizer`.
  """
  warmup, rate = settings.warmup_steps, settings.learning_rate
  return float(optax.warmup_cosine_decay_schedule(
      0.0 if warmup else rate, rate, warmup, steps, rate * settings.final_fraction)(step))


def make_checked_step(work: Workload) -> Callable[[TrainState, StepDraws], dict[str, Any]]:
  """Returns our step in the form of `torch_step.check`.

  The step is a function (state, its draws) -> dict(image, gradient, layers).

  The gradient comes from an optimiser that keeps the gradients in its own state.
  """
  optimizer = work.optimizer

  def update(grads, kept, params):
    updates, opt_state = optimizer.update(grads, kept[1], params)
    return updates, (grads, opt_state)

  keeping = optax.GradientTransformation(optimizer.init, update)
  step = jax.jit(make_step(work.generator, work.terms, keeping, step_options(work.settings)))
  image = jax.jit(lambda *args: parts.render_views(work.generator, *args))

  def run(state: TrainState, draws: StepDraws) -> dict[str, Any]:
    # The gradient's place needs a value of its shapes before the step: the parameters do.
    after = step(state.replace(opt_state=(state.params, state.opt_state)), *work.fixed)[0]
    return dict(image=np.asarray(image(state.params, state.occupancy, draws)),
                gradient=layers(after.opt_state[0]["field"]), layers=layers(after.params["field"]))

  return run


def errors(jax_result: dict[str, Any], torch_result: dict[str, Any], before: Layers) -> dict[str, float]:
  """Returns the relative errors dict(image, gradient, update) of PyTorch's result.

  The error of the image is the largest difference over the largest value. Those of gradient and update are norms of the
  difference over the norm, for all parameters together.

  Args:
    jax_result, torch_result: dict(image, gradient, layers).
    before: the layers before the step.
  """
  flat = lambda layers: np.concatenate([a.ravel() for pair in layers for a in pair])  # noqa: E731
  relative = lambda got, expected: float(np.linalg.norm(got - expected) / np.linalg.norm(expected))  # noqa: E731
  start, image = flat(before), jax_result["image"]
  return dict(
      image=float(np.abs(torch_result["image"] - image).max() / np.abs(image).max()),
      gradient=relative(flat(torch_result["gradient"]), flat(jax_result["gradient"])),
      update=relative(flat(torch_result["layers"]) - start, flat(jax_result["layers"]) - start))


def check_errors(relative: dict[str, float]) -> None:
  """Raises PeerError unless every error of `errors` is a number within its tolerance."""
  for name, largest in TOLERANCES.items():
    # Written so that NaN fails, too.
    if not relative[name] <= largest:
      raise PeerError(f"PyTorch does not compute the same: relative error of the {name} {relative[name]:.1e}, allowed "
                      f"{largest:.0e}; no times are compared")


def compare(work: Workload, drawer: Callable[[jax.Array], StepDraws], compiled: Callable, state: TrainState, *,
            steps: int, rounds: int, block: int = 0) -> dict[str, Any]:
  """Checks, then times both sides in turns.

  Args:
    work, drawer, compiled: the workload, its `step_draws.make_drawer` and its executable step.
    state: the start of every turn.
    steps: of a turn.
    rounds: number of turns of each side.
    block: number of points that PyTorch's field gets at a time; 0: all.

  Returns:
    dict(errors, threads, block, jax, torch, ratios, torch_peak_memory_bytes): `jax` and `torch` as `workload.by_mode`;
    `ratios` of their medians, torch / JAX, by mode.

  Raises:
    PeerError: PyTorch does not compute the same, or its process ended.
  """
  first = int(state.step)
  inputs = [torch_inputs(work, step, drawer(jnp.int32(step))) for step in range(first, first + steps + 1)]
  content, threads = payload(work, state, block), timing.cpu_count()
  records: dict[str, list] = dict(jax=[], torch=[])
  with Process("torch_step", content, threads) as process:
    jax_result = make_checked_step(work)(state, drawer(state.step))
    relative = errors(jax_result, process.ask("check", inputs[0]), content["layers"])
    check_errors(relative)
    # One turn more, because the first of each side is not counted.
    for turn in range(rounds + 1):
      # A copy for each turn, because the step is donated its state.
      fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
      jax_records = workload.run_steps(work, compiled, fresh, steps + 1)[1]
      torch_records = [dict(seconds=seconds, shaded=one["shaded"])
                       for seconds, one in zip(process.ask("time", inputs), inputs)]
      if turn:  # PyTorch's first steps are slower than its later ones
        records["jax"] += jax_records[1:]
        records["torch"] += torch_records[1:]
    memory = process.ask("stop", None)
  times = {name: workload.by_mode(steps) for name, steps in records.items()}
  ratios = {mode: times["torch"][mode]["median_s"] / summary["median_s"] if summary["count"] else None
            for mode, summary in times["jax"].items()}
  return dict(errors=relative, threads=threads, block=block, **times, ratios=ratios, torch_peak_memory_bytes=memory)


class Process:
  """A process that runs `serve` of torch_step or torch_prior; a context manager."""

  def __init__(self, module: str, content: dict[str, Any], threads: int):
    """Starts the process.

    Args:
      module: in this package.
      content: the payload of `serve`.
      threads: number of PyTorch's threads.
    """
    # Spawned: JAX's threads may not survive a fork.
    context = multiprocessing.get_context("spawn")
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, module, content, threads), daemon=True)
    self._process.start()
    # Our copy of the other end: while it is open, `recv` would wait for a process that has died.
    theirs.close()

  def __enter__(self) -> Process:
    return self

  def __exit__(self, *_: Any) -> None:
    self._connection.close()
    # A closed pipe ends the loop of the process; a process that hangs is killed.
    self._process.join(timeout=10)
    self._process.kill()

  def ask(self, request: str, argument: Any) -> Any:
    """Returns the answer to one request; raises PeerError if the process has ended."""
    try:
      self._connection.send((request, argument))
      return self._connection.recv()
    except (EOFError, ConnectionError) as error:
      raise PeerError("the PyTorch process ended; its output above says why") from error


def _serve(connection: Any, module: str, content: dict[str, Any], threads: int) -> None:
  """Runs in the new process, the only process that imports torch."""
  compilation.disable_malloc_trim()  # as in our own process, so that both sides allocate alike
  importlib.import_module(f"sds_jax.benchmarks.{module}").serve(connection, content, threads)
