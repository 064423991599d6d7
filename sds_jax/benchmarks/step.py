"""How long a step of text-to-3D takes, and where the time goes.

    python -m sds_jax.benchmarks.step --json=record.json
    python -m sds_jax.benchmarks.step --peer=torch                     # needs the extra sds_jax[parity]
    python -m sds_jax.benchmarks.step --prior=FOLDER --config.render.num_samples=24
    python -m sds_jax.benchmarks.step --prior=sd15 --random_weights    # settings of configs/text.py:sd15, no files
    python -m sds_jax.benchmarks.step --prior=sd15 --random_weights --memory_only

It compiles the trainer's own step with an empty persistent cache and again from that cache; times steps at the start of
a run, and again at step `--at`, where the occupancy grid has found the object and shading has set in; and times the
parts of the step at `--at`. `--peer=torch` adds the same step written with PyTorch and diffusers (peer.py), or, for
latent priors and those with random weights, the part of the step that is the prior's (peer_prior.py). `--memory_only`
compiles the step, its rays rendered as on an accelerator, and tells the memory that it needs; nothing is run.
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

from sds_jax import compilation
from sds_jax.benchmarks import memory, parts, peer, peer_prior, table, timing, workload
from sds_jax.io import files
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.training import config as config_lib
from sds_jax.training import validation


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """The command line `argv` (its first entry is the program) as flags.

  Raises:
    flags.Error: an unknown flag or a malformed value.
    ConfigError: an unknown setting.
  """
  values = flags.FlagValues()
  for argument in argv[1:]:
    if argument.startswith("--config."):
      validation.check_name(argument.split("=")[0].removeprefix("--config."), config_lib.default())
  first = flags.FlagValues()  # the defaults of all other settings depend on the prior
  flags.DEFINE_string("prior", "", "", flag_values=first)
  first(list(argv), known_only=True)
  config_flags.DEFINE_config_dict("config", workload.default_config(first.prior), "settings, as in configs/text.py",
                                  flag_values=values, sys_argv=list(argv))
  for name, default, words in (
      ("prior", "", "a name or a folder, instead of config.prior"), ("json", "", "where to write all raw numbers"),
      ("peer", "", "'torch': compare with the same step in PyTorch")):
    flags.DEFINE_string(name, default, words, flag_values=values)
  for name, default, words in (
      ("steps", 20, "how many steps are timed at a time"), ("warmup", 3, "steps before the first that is timed"),
      ("at", 150, "the step of the second look; steps up to there are run, not timed"),
      ("repeats", 10, "how often each part is timed"), ("rounds", 5, "turns that each side of a comparison has"),
      ("matmul", 0, "size of the matrix product that everything is measured by; 0: 2048 on CPUs, 8192 elsewhere"),
      ("peer_block", 0, "points that the peer's field sees at a time; 0: all at once")):
    flags.DEFINE_integer(name, default, words, lower_bound=0, flag_values=values)
  for name, words in (("random_weights", "random weights of the shapes of the published prior, no files"),
                      ("memory_only", "compile, tell how much memory the step needs, and run nothing")):
    flags.DEFINE_boolean(name, False, words, flag_values=values)
  values(list(argv))
  return values


def settings(values: flags.FlagValues) -> Any:
  """The validated config of the command line. Raises ConfigError."""
  config = values.config
  if values.prior:
    is_folder = Path(values.prior).is_dir()
    config.prior.path, config.prior.name = (values.prior, "") if is_folder else ("", values.prior)
  config.prior.random_weights = config.prior.random_weights or values.random_weights
  if values.memory_only:
    config = memory.accelerator_shaped(config)
  if values.json and not Path(values.json).absolute().parent.is_dir():
    raise validation.ConfigError(f"--json={values.json}: there is no such folder; make it first")
  if values.peer not in ("", "torch"):
    raise validation.ConfigError(f"--peer={values.peer} is not legal: it must be 'torch'")
  if min(values.steps, values.repeats, values.rounds) < 1:
    raise validation.ConfigError("--steps, --repeats and --rounds must be at least 1")
  return validation.validate(config)


def measure(values: flags.FlagValues) -> dict[str, Any]:
  """Everything that the command line asks for, as one JSON object.

  Raises:
    ConfigError, CheckpointError: as the trainer does.
    PeerError: the peer is not installed, cannot do these settings, or does not compute the same.
  """
  config = settings(values)
  if values.memory_only:
    return memory.measure(config)
  if values.peer:
    peer.check_installed()
  size = values.matmul or (2048 if jax.default_backend() == "cpu" else 8192)
  record: dict[str, Any] = dict(
    date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), machine=timing.machine(),
    arguments={name: values[name].value for name in ("prior", "steps", "warmup", "at", "repeats", "rounds",
                                                     "peer_block", "random_weights")},
    config=config.to_dict(), matmul=dict(size=size, dtype=config.prior.dtype,
                                           flops_per_s=timing.matmul_rate(size, dtype=config.prior.dtype)))
  work = workload.build(config)
  if values.peer and not peer_prior.wanted(work):
    peer.check_supported(config)
  record["prior_source"] = work.prior.source.as_dict()
  state = workload.first_state(work)
  compiled, record["compile"] = workload.compile_twice(work, state)
  record |= dict(xla_memory=memory.planned(compiled), arguments_memory=memory.by_argument(work, state))
  state, _ = workload.run_steps(work, compiled, state, values.warmup)
  drawn = workload.drawer(work)
  record["steps"] = {}
  for _ in range(2):
    counts = parts.sample_counts(work, state, drawn(state.step))
    name = f"from step {int(state.step)}"
    state, times = workload.run_steps(work, compiled, state, values.steps)
    record["steps"][name] = dict(workload.by_mode(times), samples=counts)
    state, _ = workload.run_steps(work, compiled, state, max(values.at - int(state.step), 0))
  record |= dict(peak_memory_bytes=timing.peak_memory_bytes(), peak_device_bytes=timing.peak_device_bytes())
  record["parts"] = parts.measure(work, drawn, state, values.repeats)
  if values.peer and peer_prior.wanted(work):
    record["peer"] = peer_prior.compare(work, drawn(state.step), state.step, steps=values.steps, rounds=values.rounds)
  elif values.peer:
    record["peer"] = peer.compare(work, drawn, compiled, state, steps=values.steps, rounds=values.rounds,
                                  block=values.peer_block)
  return record


def main(argv: Sequence[str]) -> int:
  """The command; 2 where something was wrong with what it was asked."""
  try:
    values = parse(argv)
    if values.peer:  # or JAX takes most of an accelerator's memory at once, and PyTorch finds too little
      os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compilation.keep_memory()  # as run.py does
    record = measure(values)
    print((table.format_memory if values.memory_only else table.format_record)(record))
    if values.json:
      files.write_json(record, values.json)
  except (flags.Error, validation.ConfigError, CheckpointError, peer.PeerError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
