"""Several processes, one job: starting it, who writes, and what all of them have to agree on.

Every process runs the same command. Process 0 alone writes and prints; what it reads of the run's own folder it tells
the others, so they need not see that folder. With one process all of this costs nothing.
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
WAIT_S = 120
"""How long the processes wait for each other at the start."""


class HostError(RuntimeError):
  """Processes that cannot work together; the message is one line that says why."""


def has_launcher(environment: Mapping[str, str] = os.environ) -> bool:
  """Whether this process is one of several of Slurm (srun), Open MPI (mpirun) or a TPU slice that says so."""
  counts = [environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_NODELIST" in environment else "1",
            environment.get("OMPI_COMM_WORLD_SIZE", "1")]
  workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  return any(count.isdigit() and int(count) > 1 for count in counts) or len(workers) > 1


def start(coordinator: str | None = None, processes: int | None = None, number: int | None = None,
          always: bool = False) -> None:
  """Join the other processes, if there are any. To be called before anything touches a device.

  Args:
    coordinator: "host:port" of process 0, told to all; with `processes`, how many there are, and `number`, which one
      this is. None: what Slurm, Open MPI or the TPU slice say.
    always: ask them even where nothing in the environment says that there are others (a TPU slice on Google Cloud).

  Raises:
    HostError: the three do not go together, or nobody says who the others are. (Where the others do not come within
      WAIT_S, JAX ends the process.)
  """
  given = (coordinator, processes, number)
  if any(value is not None for value in given):
    if any(value is None for value in given) or not 0 <= number < processes or ":" not in coordinator:
      raise HostError(f"--coordinator={coordinator}, --num_processes={processes} and --process_id={number} go "
                      "together: HOST:PORT of process 0, how many processes there are, and which of them this is, "
                      "from 0 on")
  elif not (always or has_launcher()):
    return
  try:
    jax.distributed.initialize(coordinator, processes, number, initialization_timeout=WAIT_S)
  except (ValueError, RuntimeError) as error:
    raise HostError(f"the processes cannot find each other ({str(error).splitlines()[0]}); say who they are with "
                    "--coordinator=HOST:PORT --num_processes=N --process_id=I") from error


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether the flag is up in any process; all of them have to ask."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def raise_on_all(problem: Exception | None) -> None:
  """Raises `problem`, or where another process has one a HostError: none goes on alone and waits for ever."""
  if any_process(problem is not None):
    raise problem or HostError("another process had to stop; its message says why")


def run_on_all(function: Callable[[], T]) -> T:
  """What the function gives, of which any process may despair: then all stop, with its message in that process."""
  result, problem = None, None
  try:
    result = function()
  except Exception as error:
    problem = error
  raise_on_all(problem)
  return result


def broadcast(tree: Any) -> Any:
  """Process 0's numbers in every process: a tree of arrays, alike in structure, shapes and dtypes everywhere."""
  if jax.process_count() == 1:
    return tree
  told = multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
  return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), told, tree)


def broadcast_result(like: Any, find: Callable[[], Any]) -> Any:
  """What `find` gives in process 0, which alone calls it, in every process; where it despairs, all stop.

  Args:
    like: a tree of the same structure, shapes and dtypes (`jax.ShapeDtypeStruct` will do).
  """
  found, problem = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like), None
  if is_first():
    try:
      found = find()
    except (ValueError, OSError) as error:
      problem = error
  raise_on_all(problem)
  return broadcast(found)


def exit_now(status: int) -> None:
  """End a process of several at once: the others would be waited for, and they wait for this one."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def shut_down() -> bool:
  """Part from the others, all at the same time: whether this is process 0, which does alone what is left to do."""
  first = is_first()
  if jax.process_count() > 1:
    jax.distributed.shutdown()
  return first
