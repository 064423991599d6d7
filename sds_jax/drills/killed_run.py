"""The run of the drill `kill`: the training loop in a separate process, with its output in a log file."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.drills import tiny
from sds_jax.priors import prior as prior_lib
from sds_jax.training import config as config_lib
from sds_jax.training import loop, update
from sds_jax.training.jobs import Job
from sds_jax.training.stages import Stage
from sds_jax.training.state import TrainState, init_state, make_optimizer
from sds_jax.training.validation import validate
from sds_jax.types import Array, Params

STEPS, INTERVAL = 30, 3
LOG, PRIOR, CACHE = "log.txt", "prior", "cache"
"""Names of the log in the folder of a run, and of the prior and the compilation cache shared by all runs."""
PAUSE = 0.01
"""Seconds added to each step of `walk`, so that steps dominate the loop as in real runs."""


def main(job: str, folder: str, place: str) -> None:
  """Starts or resumes a run and finishes the run.

  Args:
    job: "walk" or "text3d".
    folder: of the run.
    place: folder with the tiny prior and the compiled programs.
  """
  Path(folder).mkdir(exist_ok=True)
  # Appends, so the log has the output of all starts.
  out = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.dup2(out, 1)
  os.dup2(out, 2)
  sys.stdout.reconfigure(line_buffering=True)
  # Semaphores of other start methods have names, and named semaphores outlive a kill.
  multiprocessing.set_start_method("fork", force=True)
  jax.config.update("jax_compilation_cache_dir", str(Path(place) / CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # With a size limit the cache uses locks, so a kill leaves no partial file.
  jax.config.update("jax_compilation_cache_max_size", 2**32)
  train(job, Path(folder), Path(place) / PRIOR)


def train(job: str, folder: Path, prior_folder: Path) -> None:
  """Runs the job in the current process."""
  config = config_lib.default()
  config.update_from_flattened_dict({
      **tiny.SETTINGS, "prior.path": str(prior_folder), "training.steps": STEPS, "training.checkpoint_every": INTERVAL,
      "training.render_every": 1})
  frozen = validate(config)
  if job == "text3d":
    prior, params = prior_lib.build(prior_folder)
    loop.train(frozen, folder, prior, params)
  else:
    # No step of `walk` calls the prior; the loop reads only its source.
    no_prior = types.SimpleNamespace(source=types.SimpleNamespace(as_dict=dict))
    loop.train(frozen, folder, no_prior, {}, lambda state, step: time.sleep(PAUSE), walk(frozen))


def walk(config: ml_collections.FrozenConfigDict) -> Job:
  """Builds a job with a small step.

  Parameters move towards new noise at each step.
  """
  optimizer = make_optimizer(config)

  def new_state(key: Array) -> TrainState:
    params = dict(field=jax.random.normal(key, (64, 8)), background=jnp.zeros(8))
    return init_state(params, optimizer, occupancy=dict(full=jnp.ones(16, bool)))

  # The gradient depends on the keys of the step, so a wrong step number after a restart changes the final bits.
  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, text: Any,
              keys: dict[str, Array], index: Array) -> tuple[Array, dict[str, Array]]:
    difference = jax.tree.map(lambda leaf: leaf - jax.random.normal(keys["rest"], leaf.shape), learnt[0])
    return 0.5 * optax.tree.norm(difference, squared=True), dict(sds_grad_norm=optax.tree.norm(difference))

  return Job((Stage(0, None),), new_state, lambda params, text, key, source: new_state(key), dict,
             lambda stage, share: update.make_step(config, optimizer, loss_fn, share=share),
             lambda workdir, state, fixed: contextlib.nullcontext())
