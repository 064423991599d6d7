"""Several processes in one run: starting them, sharing results, stopping together.

Every process runs the same command. Process 0 alone writes, prints and reads the run's folder, and broadcasts the
results; other processes need no access to the folder. With one process every function here is free.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
_EXTRAS = {"cuda gpu": "cuda12", "tpu": "tpu", "rocm": "rocm7-local"}
"""Names of platforms -> the extra of the package jax that installs them."""

WAIT_S = 120
"""Seconds for which a process waits for the others at the start."""


class HostError(RuntimeError):
  """Processes that cannot work together; the message is one line with the reason."""


def has_launcher(environment: Mapping[str, str] = os.environ) -> bool:
  """Returns whether a launcher started several processes.

  Known launchers: Slurm (srun), Open MPI (mpirun) and TPU slices.
  """
  # Within an allocation but outside srun Slurm sets SLURM_NTASKS, too; only srun sets SLURM_STEP_NODELIST.
  counts = [environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_NODELIST" in environment else "1",
            environment.get("OMPI_COMM_WORLD_SIZE", "1")]
  workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  return any(count.isdigit() and int(count) > 1 for count in counts) or len(workers) > 1


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
          always: bool = False) -> None:
  """Joins the other processes, if any.

  Must be called before the first use of a device.

  Args:
    coordinator: "host:port" of process 0; None for the values of Slurm, Open MPI or the TPU slice. Give
      `num_processes` and `process_id` along with a coordinator.
    num_processes: number of processes in the run.
    process_id: number of this process, from 0 on.
    always: look for other processes even without a launcher in the environment (a TPU slice on Google Cloud).

  Raises:
    HostError: the three values contradict each other, or no value names the other processes. (When the other
      processes do not connect within WAIT_S, JAX ends the process.)
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    if any(value is None for value in given) or not 0 <= process_id < num_processes or ":" not in coordinator:
      raise HostError(f"--coordinator={coordinator}, --num_processes={num_processes} and --process_id={process_id} "
                      "must be given together: HOST:PORT of process 0, the number of processes, and the number of "
                      "this process, from 0 to num_processes - 1")
  elif not (always or has_launcher()):
    return
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=WAIT_S)
  except (ValueError, RuntimeError) as error:
    raise HostError(f"the processes cannot find each other ({str(error).splitlines()[0]}); name them with "
                    "--coordinator=HOST:PORT --num_processes=N --process_id=I") from error


def configure() -> None:
  """Sets JAX for a command, whatever the environment says.

  Numbers have 32 bits, so JAX_ENABLE_X64 changes no result, and neither does JAX_THREEFRY_PARTITIONABLE.
  JAX_TRANSFER_GUARD=disallow is lifted outside of the steps, which guard themselves: settings, prompts and photos have
  to be brought to the device.
  """
  jax.config.update("jax_enable_x64", False)
  # Random numbers would be others otherwise, and would depend on how arrays are laid out over devices.
  jax.config.update("jax_threefry_partitionable", True)
  for name in ("jax_transfer_guard", "jax_transfer_guard_host_to_device", "jax_transfer_guard_device_to_device",
               "jax_transfer_guard_device_to_host"):
    if "disallow" in str(getattr(jax.config, name, "")):
      jax.config.update(name, "allow")


def check_platform() -> None:
  """Starts the devices; must be called after `start`.

  Raises:
    HostError: the platform that JAX_PLATFORMS asks for is not there; the message has the command that installs it.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter, without a text, where the plugin is missing
    asked, reason = jax.config.jax_platforms or "the default", " ".join(str(error).split())[:200]
    extras = [extra for names, extra in _EXTRAS.items() if set(names.split()) & set(asked.lower().split(","))]
    remedy = "".join(f"install it with pip install -U 'jax[{extra}]', or " for extra in extras[:1])
    raise HostError(f"JAX cannot start the platform {asked} of JAX_PLATFORMS ({reason or 'it is not installed'}); "
                    f"{remedy}set JAX_PLATFORMS=cpu or leave it out") from error


def is_first() -> bool:
  """Returns whether this is process 0, which writes and prints."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Returns whether the flag is true in any process.

  Every process must call.
  """
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def raise_on_all(problem: Exception | None) -> None:
  """Raises in every process if any process has a problem.

  Raises `problem`, or a HostError in processes without a problem.
  """
  # A process that carried on alone would wait for ever in the next collective.
  if any_process(problem is not None):
    raise problem or HostError("another process had to stop; the message of that process says why")


def run_on_all(function: Callable[[], T]) -> T:
  """Calls `function` in every process; if any raises, all raise."""
  result, problem = None, None
  try:
    result = function()
  except Exception as error:  # of any kind: an unexpected error, too, would leave the others waiting
    problem = error
  raise_on_all(problem)
  return result


def broadcast(tree: Any) -> Any:
  """Returns process 0's arrays in every process.

  Args:
    tree: arrays; structure, shapes and dtypes must agree in all processes.
  """
  if jax.process_count() == 1:
    return tree
  values = multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
  # The broadcast runs on devices, where 64-bit leaves become 32-bit ones unless jax_enable_x64 is set.
  return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), values, tree)


def broadcast_result(like: Any, function: Callable[[], Any]) -> Any:
  """Calls `function` in process 0; all processes return the result.

  Args:
    like: a tree of the result's structure, shapes and dtypes (`jax.ShapeDtypeStruct` will do).
    function: may raise ValueError or OSError; then all processes raise.
  """
  # Every process must enter the broadcast with a tree of the same shapes.
  result, problem = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like), None
  if is_first():
    try:
      result = function()
    except (ValueError, OSError) as error:
      problem = error
  raise_on_all(problem)
  return broadcast(result)


def exit_now(status: int) -> None:
  """Ends this process at once when the run has several."""
  # A regular exit waits for the other processes, which wait for this one.
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def shut_down() -> bool:
  """Disconnects all processes at the same time.

  Returns whether this process is process 0.
  """
  first = is_first()
  if jax.process_count() > 1:
    jax.distributed.shutdown()
  return first
