"""The trainer's step, ready to be timed: its arguments, its executable, and what one step draws at random."""
from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from sds_jax import compilation
from sds_jax.benchmarks import timing
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import draw_noise
from sds_jax.fields.background import LEARNT
from sds_jax.priors import prior as prior_lib, published
from sds_jax.training import conditions, config as config_lib, distil, recipes, step as step_lib, update
from sds_jax.training.config import scalar_spec
from sds_jax.training.state import TrainState
from sds_jax.training.validation import ConfigError
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras, lights


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a run's step is made of and called with, as `training.loop` has it.

  Attributes:
    scene, prior: functions.
    prior_params: of the networks that the step calls (or their shapes: see `build`).
    text: of `conditions.embed_prompts`.
    key: the run's.
  """
  scene: step_lib.Scene
  prior: prior_lib.Prior
  prior_params: Params
  text: dict[str, Array]
  key: Array

  @property
  def config(self) -> ml_collections.FrozenConfigDict:
    """The settings."""
    return self.scene.config

  @property
  def fixed(self) -> tuple[Any, ...]:
    """The step's arguments after the state."""
    return self.prior_params, self.text, self.key


def build(config: ml_collections.FrozenConfigDict, allocate: bool = True) -> Workload:
  """The workload of a validated config.

  Without `allocate`, `prior_params` are shapes (`jax.ShapeDtypeStruct`): such a workload can be compiled, not run.

  Raises:
    ConfigError: the run would have stages, or the prior does not know a word of the prompt.
    CheckpointError, ValueError: as `priors.build`.
  """
  for name, value in (("render.milestones", config.render.milestones),
                      ("distillation.latent_until", config.distillation.latent_until)):
    if value:
      raise ConfigError(f"config.{name}={value!r}: a step at a time is measured, and a run with config.{name} has "
                        "several kinds of steps; leave it out, and set config.render.height and width instead")
  if config.training.particles > 1:
    raise ConfigError(f"config.training.particles={config.training.particles}: the step of one object is measured; "
                      "leave it at 1")
  p = config.prior
  prior, weights = prior_lib.open_prior(p.path or p.name, p.dtype, p.allow_unknown_words, p.vae_remat, p.random_weights)
  try:
    text = conditions.embed_prompts(prior, config)
  except ValueError as error:
    raise ConfigError(f"config.prompt={config.prompt!r}: {error}") from error
  params = weights.load() if allocate else weights.shapes
  return Workload(step_lib.make_scene(config), prior, params, text, jax.random.key(config.seed))


def default_config(prior: str = "") -> ml_collections.ConfigDict:
  """The settings that a run has by default with the prior of this name; those of `default()` with a folder or none."""
  return recipes.from_words(prior) if prior in published.PRIORS else config_lib.default()


def first_state(work: Workload) -> TrainState:
  """The state that a run starts from."""
  begin = lambda key: step_lib.begin(work.scene, work.prior, work.prior_params, work.text, key)  # noqa: E731
  return jax.jit(begin)(jax.random.fold_in(work.key, 2**31 - 1))


def compile_step(work: Workload, state: TrainState) -> tuple[Callable, float]:
  """The step as the trainer compiles it, its state donated, and the seconds that took, tracing included."""
  started = time.perf_counter()
  step = jax.jit(step_lib.make_step(work.scene, work.prior), donate_argnums=0,
                 compiler_options=compilation.unet_options())
  return step.lower(state, *work.fixed).compile(), time.perf_counter() - started


def compile_twice(work: Workload, state: TrainState) -> tuple[Callable, dict[str, Any]]:
  """The executable, and dict(cold_s, cached_s, cache_hits).

  First with an empty persistent cache and then from it, as the first and the second run on a machine do. The
  executable is that of the first time. `cache_hits` is 0 where XLA did not take what it had stored.
  """
  hits: list[str] = []

  def listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      hits.append(event)

  with _empty_cache():
    compiled, cold = compile_step(work, state)
    jax.monitoring.register_event_listener(listen)
    try:
      _, cached = compile_step(work, state)
    finally:
      jax.monitoring.unregister_event_listener(listen)
  return compiled, dict(cold_s=cold, cached_s=cached, cache_hits=len(hits))


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
  """A persistent compilation cache of our own, gone afterwards."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  with tempfile.TemporaryDirectory() as folder:
    try:
      for name, value in zip(names, (folder, 0.0)):
        jax.config.update(name, value)
      compilation_cache.reset_cache()  # else a process that has compiled before keeps to what it had
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


def run_steps(work: Workload, compiled: Callable, state: TrainState,
              steps: int) -> tuple[TrainState, list[dict[str, Any]]]:
  """Takes `steps` steps and waits for each: (state, one dict(step, seconds, shaded) a step). `state` is donated."""
  records = []
  for _ in range(steps):
    (state, metrics), seconds = timing.once(compiled, state, *work.fixed)
    records.append(dict(step=int(state.step) - 1, seconds=seconds, shaded=bool(metrics["shaded"])))
  return state, records


def by_mode(records: list[dict[str, Any]]) -> dict[str, Any]:
  """Summaries of the times of `run_steps`: of all steps as drawn, of those without shading, of those with."""
  pick = lambda keep: timing.summary([r["seconds"] for r in records if keep(r)])  # noqa: E731
  return dict(as_drawn=pick(lambda r: True), albedo=pick(lambda r: not r["shaded"]), shaded=pick(lambda r: r["shaded"]))


@dataclasses.dataclass(frozen=True)
class Draws:
  """Everything random that one step draws, and what depends on the moment of the run. Arrays, views [V] first.

  Attributes:
    cameras: [V].
    background: [V, H, W, 3], None where it is learnt; jitter: [V H W]; light: [V, 3].
    shading: the step's.
    render_key, cond, progress: as `training.step` has them.
    t: [V] int32; eps: [V, *x_shape].
  """
  cameras: Camera
  background: Array | None
  jitter: Array
  light: Array
  shading: lights.Shading
  render_key: Array
  cond: dict[str, Any]
  progress: Array
  t: Array
  eps: Array


jax.tree_util.register_dataclass(Draws)


def draw(work: Workload, step: Array) -> Draws:
  """What the trainer's step number `step` [] int32 draws.

  Follows `training.step.make_step` key by key; that both agree is tested by the gradient (`peer`'s check).
  """
  scene, config = work.scene, work.config
  index, height, width = jnp.arange(config.training.views), config.render.height, config.render.width
  keys = update.step_keys(work.key, step)
  progress = step.astype(jnp.float32) / config.training.steps
  cams, azimuth, elevation = step_lib._draw_cameras(scene, keys["views"], index)
  own = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(keys["rest"], i), 3))(index)
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, height, width))(cams)
  behind = None
  if config.background.name not in LEARNT:
    behind = jax.vmap(lambda key, d: scene.background.apply({}, key, d.reshape(-1, 3)))(
      own[:, 1], rays.directions).reshape(rays.directions.shape)
  eps_like = jnp.zeros((config.training.views, *work.prior.x_shape))
  return Draws(
    cameras=cams, background=behind,
    jitter=jax.vmap(lambda key: jax.random.uniform(key, (height * width,)))(own[:, 2]).reshape(-1),
    light=jax.vmap(lambda key, p: lights.sample_light(key, p, scene.lights))(own[:, 0], cams.position),
    shading=lights.sample_shading(keys["shading"], progress, scene.lights), render_key=keys["rest"],
    cond=conditions.of_views(work.prior, work.prior_params, config, work.text, cams, azimuth, elevation, progress),
    progress=progress,
    t=distil.draw_t(config, work.prior, keys["t"], progress, index),
    eps=draw_noise(jax.random.split(keys["distil"], 3)[1], index, eps_like, config.distillation.antithetic_noise))


def drawer(work: Workload) -> Callable[[Array], Draws]:
  """`draw` of this workload, jitted: step number [] int32 -> Draws. Compiles once for all steps."""
  return jax.jit(lambda step: draw(work, step))


def guidance_scale(config: ml_collections.FrozenConfigDict, progress: Array) -> Array:
  """The scale s of diffusers' convention [], whichever convention the config has."""
  scale = schedule_value(scalar_spec(config.distillation.guidance_scale), progress)
  return scale + 1 if config.distillation.guidance_convention == "dreamfusion" else scale
