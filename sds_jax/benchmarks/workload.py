"""The step of a run, ready to be timed: its arguments and its executable."""
from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import optax
from jax.experimental.compilation_cache import compilation_cache

from sds_jax import compilation, settings as settings_lib
from sds_jax.benchmarks import timing
from sds_jax.generators.field import FieldGenerator
from sds_jax.priors import published
from sds_jax.priors.prior import Prior
from sds_jax.prng import seeded_key
from sds_jax.schema import ConfigError
from sds_jax.settings.generator import FIELD
from sds_jax.settings.recipes import text3d as recipes
from sds_jax.settings.text3d import Text3D
from sds_jax.tasks.text3d import Text3DTask
from sds_jax.training.optimizer import make_optimizer
from sds_jax.training.parallel import Share
from sds_jax.training.program import Program
from sds_jax.training.state import TrainState
from sds_jax.training.step import StepFn, Term
from sds_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Workload:
  """The functions and arguments of a text-to-3D step, as `training.loop` has them.

  Attributes:
    settings: the tree.
    program: the run; has one stage.
    prior: the frozen diffusion model.
    prior_params: of the networks that the step calls, or their shapes.
    conditions: the embedded prompts.
    key: of the run.
  """
  settings: Text3D
  program: Program
  prior: Prior
  prior_params: Params
  conditions: dict[str, Array]
  key: Array

  @property
  def generator(self) -> FieldGenerator:
    """Returns the field and its cameras."""
    return self.program.stages[0].generator

  @property
  def terms(self) -> Sequence[Term]:
    """Returns the summands of the loss."""
    return self.program.terms(self.program.stages[0])

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Returns the optimiser of the field and the background."""
    return make_optimizer(self.settings.optimizer, self.settings.training.steps)

  @property
  def fixed(self) -> tuple[Any, ...]:
    """Returns the step's arguments after the state."""
    return self.prior_params, self.conditions, self.key


_ONE_KIND_OF_STEP = {"render.milestones": (), "distillation.latent_until": 0.0}
"""Settings that give a run several kinds of steps, and their one legal value here."""


def build(task: Text3DTask, allocate: bool = True) -> Workload:
  """Opens the prior and makes the step of a task.

  Args:
    task: text-to-3D.
    allocate: whether the prior's weights are read. Without them `prior_params` are shapes (`jax.ShapeDtypeStruct`):
      such a workload can be compiled, but not run.

  Raises:
    ConfigError: the settings have no single step of one field, or the prior does not suit the task or the prompt.
    CheckpointError: files of the prior are missing or damaged.
  """
  settings = task.settings
  for name, only in _ONE_KIND_OF_STEP.items():
    group, field = name.split(".")
    if (value := getattr(getattr(settings, group), field)) != only:
      raise ConfigError(f"config.{name}={value!r} gives a run several kinds of steps, and the benchmark measures one: "
                        f"leave it at {only!r}, and set config.render.height and width instead")
  if settings.training.particles > 1:
    raise ConfigError(f"config.training.particles={settings.training.particles}: the benchmark measures the step of "
                      "one object; leave it at 1")
  if settings.generator.name != FIELD:
    raise ConfigError(f"config.generator.name={settings.generator.name!r}: the benchmark measures the parts of a "
                      f"field's step; leave it at {FIELD!r}")
  prior, weights = task.opened
  program = task.program(prior)
  params = weights.load() if allocate else weights.shapes
  return Workload(settings, program, prior, params, program.embed(), seeded_key(settings.seed))


def default_config(prior: str = "") -> ml_collections.ConfigDict:
  """Returns the settings of configs/text.py with a published prior of this name.

  For any other name they are the defaults.
  """
  return recipes.from_words(prior) if prior in published.PRIORS else settings_lib.defaults()


def make_step(work: Workload) -> StepFn:
  """Returns the step on one device; pure."""
  return work.program.make_step(work.program.stages[0], Share())


def first_state(work: Workload) -> TrainState:
  """Returns the state before the first update."""
  # Shapes alone: a new state reads no values of the prior, which may not be loaded.
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), work.prior_params)
  begin = jax.jit(lambda key: work.program.begin(shapes, work.conditions, key, None))
  # The same fold as in `training.loop`, so that the benchmark begins as a run does.
  return begin(jax.random.fold_in(work.key, 2**31 - 1))


def compile_step(work: Workload, state: TrainState) -> tuple[Callable, float]:
  """Compiles the step as the training loop does, with the state donated.

  Returns:
    The executable, and the seconds of tracing and compilation.
  """
  started = time.perf_counter()
  step = jax.jit(make_step(work), donate_argnums=0, compiler_options=compilation.unet_options())
  return step.lower(state, *work.fixed).compile(), time.perf_counter() - started


def compile_twice(work: Workload, state: TrainState) -> tuple[Callable, dict[str, Any]]:
  """Compiles with an empty persistent cache, then from that cache.

  The first two runs on a machine compile in the same way.

  Returns:
    The executable of the first time, and dict(cold_s, cached_s, cache_hits). `cache_hits` is 0 where XLA did not use
    the stored executable.
  """
  hits: list[str] = []

  def listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      hits.append(event)

  with _empty_cache():
    compiled, cold = compile_step(work, state)
    # JAX tells a hit by an event only; both calls return an executable.
    jax.monitoring.register_event_listener(listen)
    try:
      _, cached = compile_step(work, state)
    finally:
      jax.monitoring.unregister_event_listener(listen)
  return compiled, dict(cold_s=cold, cached_s=cached, cache_hits=len(hits))


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
  """Redirects the persistent compilation cache to a temporary folder."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  with tempfile.TemporaryDirectory() as folder:
    try:
      for name, value in zip(names, (folder, 0.0)):
        jax.config.update(name, value)
      compilation_cache.reset_cache()  # JAX opens its cache once in a process, and ignores a later change of the folder
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


def run_steps(work: Workload, compiled: Callable, state: TrainState,
              steps: int) -> tuple[TrainState, list[dict[str, Any]]]:
  """Runs `steps` steps and waits for each.

  Returns:
    The state, and one dict(step, seconds, shaded) for each step. The given `state` is donated.
  """
  records = []
  for _ in range(steps):
    (state, metrics), seconds = timing.once(compiled, state, *work.fixed)
    # The state counts the step that has just been made.
    records.append(dict(step=int(state.step) - 1, seconds=seconds, shaded=bool(metrics["shaded"])))
  return state, records


def by_mode(records: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns summaries of the times of `run_steps`.

  The summaries are of all steps as drawn, of unshaded and of shaded steps.
  """
  pick = lambda keep: timing.summary([r["seconds"] for r in records if keep(r)])  # noqa: E731
  return dict(as_drawn=pick(lambda r: True), albedo=pick(lambda r: not r["shaded"]), shaded=pick(lambda r: r["shaded"]))
