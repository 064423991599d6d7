"""The seconds of a step of text-to-3D, and of the parts of the step.

    python -m sds_jax.benchmarks.step --json=record.json
    python -m sds_jax.benchmarks.step --peer=torch                     # needs the extra sds_jax[parity]
    python -m sds_jax.benchmarks.step --prior=FOLDER --config.render.num_samples=24
    python -m sds_jax.benchmarks.step --prior=sd15 --random_weights    # settings of configs/text.py:sd15, no files
    python -m sds_jax.benchmarks.step --prior=sd15 --random_weights --memory_only

The command compiles the step of the training loop with an empty persistent cache and again from that cache. The command
then times steps at the start of a run, and again from step `--at`, where the occupancy grid fits the object and shading
has begun; and the parts of the step `--at`. `--peer=torch` adds the same step in PyTorch and diffusers (peer.py), or
the prior's part of the step for latent priors and random weights (peer_prior.py). `--memory_only` compiles the step,
whose rays are rendered as on an accelerator, and reports the memory that the step needs; nothing is run.
"""
from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from sds_jax import compilation, schema, settings as settings_lib
from sds_jax.benchmarks import memory, parts, peer, peer_prior, step_draws, table, timing, workload
from sds_jax.io import files
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.schema import ConfigError
from sds_jax.settings.text3d import Text3D
from sds_jax.tasks import Text3DTask


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Parses the command line `argv`, whose first entry is the program.

  Raises:
    flags.Error: an unknown flag or a malformed value.
    ConfigError: an unknown setting.
  """
  values = flags.FlagValues()
  for argument in argv[1:]:
    if argument.startswith("--config."):
      settings_lib.check_name(argument.split("=")[0].removeprefix("--config."), Text3D())
  prior_alone = flags.FlagValues()  # the defaults of all other settings depend on the prior
  flags.DEFINE_string("prior", "", "", flag_values=prior_alone)
  prior_alone(list(argv), known_only=True)
  config_flags.DEFINE_config_dict("config", workload.default_config(prior_alone.prior), "settings of configs/text.py",
                                  flag_values=values, sys_argv=list(argv))
  for name, default, meaning in (
      ("prior", "", "a name or a folder, instead of config.prior"), ("json", "", "file for all raw numbers"),
      ("peer", "", "'torch': compare with the same step in PyTorch")):
    flags.DEFINE_string(name, default, meaning, flag_values=values)
  for name, default, meaning in (
      ("steps", 20, "number of steps timed at a time"), ("warmup", 3, "steps before the first timed step"),
      ("at", 150, "first step of the second measurement; steps before it are run, not timed"),
      ("repeats", 10, "number of timed calls of each part"), ("rounds", 5, "turns of each side of a comparison"),
      ("matmul", 0, "size of the matrix product that rates are compared with; 0: 2048 on CPUs, 8192 elsewhere"),
      ("peer_block", 0, "points that the peer's field gets at a time; 0: all")):
    flags.DEFINE_integer(name, default, meaning, lower_bound=0, flag_values=values)
  for name, meaning in (("random_weights", "random weights of the shapes of the published prior, no files"),
                      ("memory_only", "compile, report the memory that the step needs, and run nothing")):
    flags.DEFINE_boolean(name, False, meaning, flag_values=values)
  values(list(argv))
  return values


def read_settings(values: flags.FlagValues) -> Text3D:
  """Returns the validated settings of a command line; raises ConfigError."""
  config = values.config
  if values.prior:
    is_folder = Path(values.prior).is_dir()
    config.prior.path, config.prior.name = (values.prior, "") if is_folder else ("", values.prior)
  config.prior.random_weights = config.prior.random_weights or values.random_weights
  if values.memory_only:
    config = memory.accelerator_shaped(config)
  if values.json and not Path(values.json).absolute().parent.is_dir():
    raise ConfigError(f"--json={values.json}: there is no such folder; make it first")
  if values.peer not in ("", "torch"):
    raise ConfigError(f"--peer={values.peer} is not legal: it must be 'torch'")
  if min(values.steps, values.repeats, values.rounds) < 1:
    raise ConfigError("--steps, --repeats and --rounds must be at least 1")
  return settings_lib.validate(config)


def measure(values: flags.FlagValues) -> dict[str, Any]:
  """Returns all measurements of a command line, as one JSON object.

  Raises:
    ConfigError, CheckpointError: as in training.
    PeerError: the peer is not installed, lacks a setting, or does not compute the same.
  """
  settings = read_settings(values)
  if values.memory_only:
    return memory.measure(workload.build(Text3DTask(settings), allocate=False))
  if values.peer:
    peer.check_installed()
  record = _about(values, schema.to_dict(settings))
  work = workload.build(Text3DTask(settings))
  if values.peer and not peer_prior.is_only_comparison(work):
    peer.check_supported(work)
  record["prior_source"] = work.prior.source.as_dict()
  state = workload.first_state(work)
  compiled, record["compile"] = workload.compile_twice(work, state)
  record |= dict(xla_memory=memory.planned(compiled), arguments_memory=memory.by_argument(work, state))
  # The first calls of an executable are slower than all others.
  state, _ = workload.run_steps(work, compiled, state, values.warmup)
  drawer = step_draws.make_drawer(work)
  record["steps"] = {}
  # Twice: at first rays pass through a full occupancy grid and take more samples than later.
  for _ in range(2):
    counts = parts.sample_counts(work, state, drawer(state.step))
    name = f"from step {int(state.step)}"
    state, times = workload.run_steps(work, compiled, state, values.steps)
    record["steps"][name] = dict(workload.by_mode(times), samples=counts)
    state, _ = workload.run_steps(work, compiled, state, max(values.at - int(state.step), 0))
  record |= dict(peak_memory_bytes=timing.peak_memory_bytes(), peak_device_bytes=timing.peak_device_bytes())
  record["parts"] = parts.measure(work, drawer, state, values.repeats)
  if values.peer and peer_prior.is_only_comparison(work):
    record["peer"] = peer_prior.compare(work, drawer(state.step), state.step, steps=values.steps, rounds=values.rounds)
  elif values.peer:
    record["peer"] = peer.compare(work, drawer, compiled, state, steps=values.steps, rounds=values.rounds,
                                  block=values.peer_block)
  return record


def _about(values: flags.FlagValues, config: dict[str, Any]) -> dict[str, Any]:
  """Returns the beginning of a record.

  The record begins with date, machine, arguments, settings, and the rate of a matrix product.
  """
  size = values.matmul or (2048 if jax.default_backend() == "cpu" else 8192)
  dtype = config["prior"]["dtype"]
  arguments = ("prior", "steps", "warmup", "at", "repeats", "rounds", "peer_block", "random_weights")
  return dict(
      date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), machine=timing.machine(),
      arguments={name: values[name].value for name in arguments}, config=config,
      matmul=dict(size=size, dtype=dtype, flops_per_s=timing.matmul_rate(size, dtype=dtype)))


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns 2 after a mistake in the command line."""
  try:
    values = parse(argv)
    if values.peer:  # otherwise JAX reserves most of an accelerator's memory at once, and PyTorch has too little
      os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compilation.disable_malloc_trim()  # as in training
    record = measure(values)
    print((table.format_memory if values.memory_only else table.format_record)(record))
    if values.json:
      files.write_json(record, values.json)
  except (flags.Error, ConfigError, CheckpointError, peer.PeerError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
