"""A look inside: what the prior sees and wants in the coming step, as one picture that tells why a run fails."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from sds_jax import compilation
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import add_noise
from sds_jax.io import images
from sds_jax.priors.prior import Prior
from sds_jax.training import step as step_lib, update
from sds_jax.training.config import scalar_spec
from sds_jax.training.distil import distil
from sds_jax.training.stages import Stage, are_over, at_step
from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params

COLUMNS = ("render", "decoded", "noisy", "x0")
"""The render; what is left of it in the prior's space; that with the step's noise; the one-step x0 under guidance."""

MAX_VIEWS = 4
MIN_PIXELS = 96

InspectFn = Callable[[TrainState, Params, dict[str, Array], Array], dict[str, Array]]


def make_inspection(scene: step_lib.Scene, prior: Prior) -> InspectFn:
  """A function of the step's own arguments: (state, prior_params, text, key) -> what that step sees, without moving.

  It draws the very views, t and noise of the step that comes next. The result has, for the first MAX_VIEWS views, an
  array [B, S, S, 3] in [0, 1] for each of COLUMNS, S a multiple of the prior's image size; `t` [B] int32; `scale` []
  float32, the guidance. Pure and jit-able; images are decoded one at a time, for the memory's sake.
  """
  config = scene.config
  size = prior.image_size * math.ceil(MIN_PIXELS / prior.image_size)

  def inspect_guidance(state: TrainState, prior_params: Params, text: dict[str, Array], key: Array) -> dict[str, Array]:
    keys, progress = update.step_keys(key, state.step, state.health["restarts"]), update.progress_of(config, state.step)
    views = step_lib.observe(scene, prior, state.params, state, prior_params, text, keys)
    own = dict(views.own, score=(state.estimator or {}).get("score"))
    _, aux = distil(config, prior, prior_params, views.x, views.cond, keys, progress, own)
    noisy = add_noise(prior.schedule, views.x, aux.eps, aux.t)

    def picture(image: Array) -> Array:
      return jax.image.resize(image.astype(jnp.float32), (image.shape[0], size, size, 3), "nearest")

    def decoded(z: Array) -> Array:
      return picture(jax.lax.map(lambda one: prior.decode(prior_params, one[None])[0], z[:MAX_VIEWS]))

    pictures = (picture(views.out.rgb[:MAX_VIEWS]), decoded(views.x), decoded(noisy), decoded(aux.x0_hat))
    scale = schedule_value(scalar_spec(config.distillation.guidance_scale), progress)
    return dict(zip(COLUMNS, pictures), t=aux.t[:MAX_VIEWS], scale=scale)

  return inspect_guidance


def write_sheet(config: ml_collections.FrozenConfigDict, seen: dict[str, Array], path: Path) -> Path:
  """One row a view with its t and the guidance scale, one column for each of COLUMNS; waits for `seen`."""
  seen = jax.device_get(seen)
  views = range(len(seen["t"]))
  rows = [[seen[name][view] for name in COLUMNS] for view in views]
  labels = [f"t = {seen['t'][view]}" for view in views]
  corner = f"{config.distillation.guidance_convention} {seen['scale']:.3g}"
  return images.write_png(images.tile_rows(rows, labels, titles=(corner, *COLUMNS)), path)


@contextlib.contextmanager
def sheets(stages: Sequence[Stage], prior: Prior, workdir: Path, state: TrainState,
           fixed: tuple[Any, ...]) -> Iterator[Callable[[TrainState, int], None] | None]:
  """Within it, a function (state, step) that has progress/guidance_<step>.png written; None where none are asked for.

  Its programs, one for each stage of the run, are compiled on entry, apart from the step's. A call only starts one;
  waiting, fetching and writing happen on a thread of their own, so steps go on. At most one sheet is under way.

  Args:
    state: like those that it will be called with; not kept.
    fixed: (prior_params, text, key), the step's other arguments.

  Raises:
    OSError: a sheet could not be written; at the next call or on exit.
  """
  config = stages[0].scene.config
  if not config.training.guidance_every:
    yield None
    return
  (workdir / "progress").mkdir(exist_ok=True)
  options = compilation.unet_options()
  inspections = [None if over else jax.jit(make_inspection(stage.scene, prior), compiler_options=options).lower(
      state, *fixed).compile() for stage, over in zip(stages, are_over(stages, int(state.step)))]
  under_way: list[Future] = []

  def draw(state: TrainState, step: int) -> None:
    while under_way:
      under_way.pop().result()
    seen = at_step(stages, inspections, step)(state, *fixed)  # before the step takes over the state's memory
    under_way.append(pool.submit(write_sheet, config, seen, workdir / "progress" / f"guidance_{step:06d}.png"))

  with ThreadPoolExecutor(max_workers=1) as pool:
    yield draw
  for last in under_way:
    last.result()
