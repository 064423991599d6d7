"""The run of the drill `kill`: the training loop in a process of its own, with the output in a log file."""
from __future__ import annotations

import multiprocessing
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sds_jax import settings as settings_lib
from sds_jax.drills import tiny
from sds_jax.generators.protocol import Draws, Exported, Views
from sds_jax.tasks import Text3DTask
from sds_jax.training import loop
from sds_jax.training.layout import make_layout
from sds_jax.training.program import make_program
from sds_jax.training.stages import Stage
from sds_jax.training.step import Context
from sds_jax.types import Array, Params

STEPS, INTERVAL = 30, 3
"""Steps of the run, and steps between two checkpoints."""
LOG, PRIOR, CACHE = "log.txt", "prior", "cache"
"""Names of the log in the folder of a run, and of the folders that all runs of a drill share."""
PAUSE = 0.01
"""Seconds that each step of `walk` waits, so that a step takes longer than the loop around it, as in real runs."""


def main(job: str, folder: str, shared: str) -> None:
  """Begins or continues the run in `folder`, up to its last step.

  A process of the drill runs this function.

  Args:
    job: "walk" or "text3d".
    folder: of the run; made if missing.
    shared: holds the tiny prior and the compilation cache.
  """
  Path(folder).mkdir(exist_ok=True)
  # Appends, so the log has the output of all starts.
  log = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.dup2(log, 1)
  os.dup2(log, 2)
  sys.stdout.reconfigure(line_buffering=True)
  # Under the other start methods tqdm's lock is a named semaphore, which outlives a killed process.
  multiprocessing.set_start_method("fork", force=True)
  jax.config.update("jax_compilation_cache_dir", str(Path(shared) / CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_compilation_cache_max_size", 2**32)  # a limited cache has locks: no half file after a kill
  train(job, Path(folder), Path(shared) / PRIOR)


def train(job: str, folder: Path, prior_folder: Path) -> None:
  """Runs the job in this process."""
  config = settings_lib.defaults()
  config.update_from_flattened_dict({
      **tiny.SETTINGS, "prior.path": str(prior_folder), "training.steps": STEPS, "training.checkpoint_every": INTERVAL,
      "training.render_every": 1})
  settings = settings_lib.validate(config)
  if job == "text3d":
    run = Text3DTask(settings).open()
    loop.train(settings, folder, run.prior, run.prior_params, run.program, run.layout)
    return
  # The loop reads nothing of a prior but its source, for config.json.
  prior = types.SimpleNamespace(source=types.SimpleNamespace(as_dict=dict))
  program = make_program(settings, (Stage(0, RandomWalk()),), lambda stage: [pull_to_noise], prior, embed=dict)
  layout = make_layout(settings.parallel, settings.training.views)
  loop.train(settings, folder, prior, {}, program, layout, lambda state, step: time.sleep(PAUSE))


class RandomWalk:
  """The generator of `walk`: a few numbers that walk at random, without images."""
  particles, together = 1, 1

  def init(self, key: Array) -> tuple[Params, Any]:
    """Returns random parameters, and buffers like an occupancy grid; consumes `key`."""
    return dict(field=jax.random.normal(key, (64, 8)), background=jnp.zeros(8)), dict(full=jnp.ones(16, bool))

  def render(self, params: Params, buffers: Any, draws: Draws) -> Views:
    """Returns views without images."""
    return Views(jnp.zeros((0, 0, 0, 3)), {})

  def update_buffers(self, params: Params, buffers: Any, step: Array, progress: Array, key: Array) -> Any:
    """Returns `buffers`."""
    return buffers

  def export(self, params: Params, buffers: Any, folder: Path) -> Exported:
    """Writes nothing."""
    return Exported({})


def pull_to_noise(views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
  """Computes half the squared distance of the parameters from noise.

  The noise is new at each step.
  """
  # The gradient depends on the keys of the step, so a wrong step number after a restart changes the final bits.
  key = context.draws.keys["rest"]
  distance = jax.tree.map(lambda leaf: leaf - jax.random.normal(key, leaf.shape), context.params)
  return 0.5 * optax.tree.norm(distance, squared=True), dict(sds_grad_norm=optax.tree.norm(distance))
