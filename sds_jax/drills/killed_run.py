"""The run that the drill `kill` kills: the trainer's loop in a process of its own, its output in a log."""
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
"""Names: of the log in a run's folder, of what all runs share in the place of the drill."""
PAUSE = 0.01
"""Seconds of each step of `walk`, so that steps take longer than the loop around them, as they do in earnest."""


def main(job: str, folder: str, place: str) -> None:
  """Begin or go on with the run in `folder`, to its end; the target of a process.

  Args:
    job: walk or text3d.
    place: holds the tiny prior and the compiled programs.
  """
  Path(folder).mkdir(exist_ok=True)
  out = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.dup2(out, 1)
  os.dup2(out, 2)
  sys.stdout.reconfigure(line_buffering=True)
  multiprocessing.set_start_method("fork", force=True)  # under others semaphores have names, which outlive a kill
  jax.config.update("jax_compilation_cache_dir", str(Path(place) / CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_compilation_cache_max_size", 2**32)  # with a limit it has locks: a kill leaves no half file
  train(job, Path(folder), Path(place) / PRIOR)


def train(job: str, folder: Path, prior_folder: Path) -> None:
  """The run, in this process."""
  config = config_lib.default()
  config.update_from_flattened_dict({
      **tiny.SETTINGS, "prior.path": str(prior_folder), "training.steps": STEPS, "training.checkpoint_every": INTERVAL,
      "training.render_every": 1})
  frozen = validate(config)
  if job == "text3d":
    prior, params = prior_lib.build(prior_folder)
    loop.train(frozen, folder, prior, params)
  else:
    nobody = types.SimpleNamespace(source=types.SimpleNamespace(as_dict=dict))  # no step asks it anything
    loop.train(frozen, folder, nobody, {}, lambda state, step: time.sleep(PAUSE), walk(frozen))


def walk(config: ml_collections.FrozenConfigDict) -> Job:
  """A job whose step is small: the parameters are drawn towards noise, other noise at each step."""
  optimizer = make_optimizer(config)

  def new_state(key: Array) -> TrainState:
    params = dict(field=jax.random.normal(key, (64, 8)), background=jnp.zeros(8))
    return init_state(params, optimizer, occupancy=dict(full=jnp.ones(16, bool)))

  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, text: Any,
              keys: dict[str, Array], index: Array) -> tuple[Array, dict[str, Array]]:
    apart = jax.tree.map(lambda leaf: leaf - jax.random.normal(keys["rest"], leaf.shape), learnt[0])
    return 0.5 * optax.tree.norm(apart, squared=True), dict(sds_grad_norm=optax.tree.norm(apart))

  return Job((Stage(0, None),), new_state, lambda params, text, key, source: new_state(key), dict,
             lambda stage, share: update.make_step(config, optimizer, loss_fn, share=share),
             lambda workdir, state, fixed: contextlib.nullcontext())
