"""The memory of one step as XLA plans it: known after compilation, before any weight is read."""
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from sds_jax.benchmarks import timing, workload
from sds_jax.tasks.objects import ACCELERATOR_BLOCK

PLANNED = ("argument", "output", "temp", "alias", "generated_code")
"""Parts of XLA's plan."""


def planned(compiled: Any) -> dict[str, int] | None:
  """Returns the bytes that XLA reserves for one call, by PLANNED.

  None where the backend does not report any.
  """
  plan = compiled.memory_analysis()
  return None if plan is None else {name: getattr(plan, f"{name}_size_in_bytes") for name in PLANNED}


def total(plan: dict[str, int]) -> int:
  """Returns the bytes that a step takes.

  The bytes are those of arguments, of results outside of the arguments' memory, of temporaries and of code.
  """
  # Outputs that alias arguments, as the donated state does, take no memory of their own.
  return plan["argument"] + plan["output"] - plan["alias"] + plan["temp"] + plan["generated_code"]


def by_argument(work: workload.Workload, state: Any) -> dict[str, int]:
  """Returns the bytes of each of the step's arguments.

  The keys are "weights of the unet" and so on, "state" and "text".
  """
  return {**{f"weights of the {name}": _size(tree) for name, tree in work.prior_params.items()},
          "state": _size(state), "text": _size(work.conditions)}


def _size(tree: Any) -> int:
  leaves: Iterable[Any] = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def accelerator_shaped(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of the settings with the blocks of accelerators.

  In the copy `render.block_points=-1` has its value off CPUs.
  """
  config = config.copy_and_resolve_references()
  # The plan is for an accelerator, and -1 would choose the blocks of this machine's CPUs.
  if config.render.block_points == -1:
    config.render.block_points = ACCELERATOR_BLOCK
  return config


def measure(work: workload.Workload) -> dict[str, Any]:
  """Compiles the step for the default backend and reports its memory.

  Args:
    work: built with `allocate=False`. Of a prior in a folder only the text encoder has been read.

  Returns:
    dict(prior_source, compile_s, xla_memory, total_bytes, arguments, machine, upcast). `upcast` is whether the
    backend converts 16 bits to float32 for its products: `temp` then holds float32 copies which an accelerator would
    not make.
  """
  # Shapes only: a state of the real size may not fit into this machine.
  state = jax.eval_shape(lambda: workload.first_state(work))
  compiled, seconds = workload.compile_step(work, state)
  plan = planned(compiled)
  upcast = jax.default_backend() == "cpu" and work.settings.prior.dtype != "float32"
  return dict(prior_source=work.prior.source.as_dict(), compile_s=seconds, xla_memory=plan,
              total_bytes=None if plan is None else total(plan), arguments=by_argument(work, state), upcast=upcast,
              machine=timing.machine())
