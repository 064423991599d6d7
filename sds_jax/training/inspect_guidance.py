"""Guidance sheets: images of the prior's input and output in the coming step, which show why a run fails."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax import compilation
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import add_noise
from sds_jax.io import images, run_files
from sds_jax.generators.protocol import Draws
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training.keys import progress_at, step_keys
from sds_jax.training.parallel import Share
from sds_jax.training.stages import Stage, are_over, at_step
from sds_jax.training.state import TrainState
from sds_jax.training.step import Context
from sds_jax.training.terms.distillation import Distillation
from sds_jax.types import Array, Params

COLUMNS = ("render", "decoded", "noisy", "x0")
"""The render; the render decoded from the prior's space; the noisy z_t, decoded; the guided one-step x0, decoded."""

CONTROL = "control"
"""A further column: the image that the prior's ControlNet reads."""

MAX_VIEWS = 4
MIN_PIXELS = 96

InspectFn = Callable[[TrainState, Params, Any, Array], dict[str, Array]]


def make_inspection(term: Distillation, steps: int) -> InspectFn:
  """Returns a function that computes the sheet of the coming step.

  The function has the arguments of a step and changes no state.

  The function draws exactly the views, t and noise of the coming step. For the first MAX_VIEWS views its result has an
  array [B, S, S, 3] in [0, 1] for each of COLUMNS, and of CONTROL for a prior with a ControlNet, S a multiple of the
  prior's image size; `t` [B] int32; and `scale` [] float32, the guidance scale. The function is pure and can be jitted.
  Images are decoded one at a time to save memory.

  Args:
    term: the distillation, with its generator.
    steps: number of steps of the run.
  """
  prior = term.prior
  size = prior.image_size * math.ceil(MIN_PIXELS / prior.image_size)

  def inspect_guidance(state: TrainState, prior_params: Params, conditions: Any, key: Array) -> dict[str, Array]:
    draws = Draws(step_keys(key, state.step, state.health["restarts"]), Share().index(term.views),
                  progress_at(state.step, steps))
    views = term.generator.render(state.params, state.occupancy, draws)
    score_params = (state.estimator or {}).get("score")
    _, aux, x = term.distil(views, Context(state.params, state, score_params, prior_params, conditions, draws))
    noisy = add_noise(prior.schedule, x, aux.eps, aux.t)

    def enlarge(image: Array) -> Array:
      # Nearest, so that the sheet shows the very pixels that the prior gets.
      return jax.image.resize(image.astype(jnp.float32), (image.shape[0], size, size, 3), "nearest")

    def decode(z: Array) -> Array:
      return enlarge(jax.lax.map(lambda one: prior.decode(prior_params, one[None])[0], z[:MAX_VIEWS]))

    columns = (enlarge(views.images[:MAX_VIEWS]), decode(x), decode(noisy), decode(aux.x0_hat))
    scale = schedule_value(term.settings.guidance_scale, draws.progress)
    control = {CONTROL: enlarge(term.control_images(views)[:MAX_VIEWS])} if prior.control else {}
    return control | dict(zip(COLUMNS, columns), t=aux.t[:MAX_VIEWS], scale=scale)

  return inspect_guidance


def write_sheet(settings: DistillationSettings, sheet: dict[str, Array], path: Path) -> Path:
  """Writes a sheet as an image with a row for each view and a column for each of COLUMNS.

  A row is labelled by its t, the corner by the guidance scale.

  Waits until the device has computed `sheet`, the result of an inspection.
  """
  sheet = jax.device_get(sheet)
  views, columns = range(len(sheet["t"])), [name for name in (*COLUMNS, CONTROL) if name in sheet]
  rows = [[sheet[name][view] for name in columns] for view in views]
  labels = [f"t = {sheet['t'][view]}" for view in views]
  corner = f"{settings.guidance_convention} {sheet['scale']:.3g}"
  return images.write_png(images.tile_rows(rows, labels, titles=(corner, *columns)), path)


@contextlib.contextmanager
def sheets(stages: Sequence[Stage], terms: Sequence[Distillation], steps: int, workdir: Path, state: TrainState,
           fixed: tuple[Any, ...]) -> Iterator[Callable[[TrainState, int], None]]:
  """Yields a function (state, step) that writes progress/guidance_<step>.png.

  The programs of the sheets, one for each stage, are compiled on entry. A call only starts a program. A thread waits,
  fetches and writes, so the steps continue. At most one sheet is under way.

  Args:
    stages: of the run.
    terms: the distillation of each stage.
    steps: number of steps of the run.
    workdir: folder of the run.
    state: like those of later calls; not kept.
    fixed: (prior_params, conditions, key), the step's other arguments.

  Raises:
    OSError: a sheet could not be written; at the next call or on exit.
  """
  (workdir / "progress").mkdir(exist_ok=True)
  options = compilation.unet_options()
  inspections = [None if over else jax.jit(make_inspection(term, steps), compiler_options=options).lower(
      state, *fixed).compile() for term, over in zip(terms, are_over(stages, int(state.step)))]
  under_way: list[Future] = []

  def draw(state: TrainState, step: int) -> None:
    while under_way:
      # Raises here the error of the last write, and keeps the fetched images of one sheet at most in memory.
      under_way.pop().result()
    sheet = at_step(stages, inspections, step)(state, *fixed)  # before the step takes over the state's memory
    path = workdir / "progress" / f"guidance_{step:06d}.png"
    under_way.append(pool.submit(run_files.in_thread(write_sheet), terms[0].settings, sheet, path))

  with ThreadPoolExecutor(max_workers=1) as pool:
    yield draw
  for last in under_way:
    last.result()
