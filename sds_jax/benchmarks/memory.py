"""How much memory one step needs, as XLA plans it: known once the step is compiled, before any weight is there."""
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from sds_jax.benchmarks import timing, workload
from sds_jax.training.step import ACCELERATOR_BLOCK

PLANNED = ("argument", "output", "temp", "alias", "generated_code")


def planned(compiled: Any) -> dict[str, int] | None:
  """What XLA reserves for one call, in bytes by PLANNED; None where the backend does not say."""
  found = compiled.memory_analysis()
  return None if found is None else {name: getattr(found, f"{name}_size_in_bytes") for name in PLANNED}


def total(plan: dict[str, int]) -> int:
  """All that is there during a step: arguments, results that don't take over an argument's place, what is between."""
  return plan["argument"] + plan["output"] - plan["alias"] + plan["temp"] + plan["generated_code"]


def by_argument(work: workload.Workload, state: Any) -> dict[str, int]:
  """{"weights of the unet", ..., "state", "text": bytes} of what the step is called with."""
  return {**{f"weights of the {name}": _size(tree) for name, tree in work.prior_params.items()},
          "state": _size(state), "text": _size(work.text)}


def _size(tree: Any) -> int:
  leaves: Iterable[Any] = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def accelerator_shaped(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the settings in which rays are rendered as `render.block_points=-1` has it off CPUs."""
  config = config.copy_and_resolve_references()
  if config.render.block_points == -1:
    config.render.block_points = ACCELERATOR_BLOCK
  return config


def measure(config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
  """The report of a validated config's step, compiled for the default backend; weights are never there.

  (Of a prior in a folder the text encoder is read, to embed the prompts.)

  Returns:
    dict(prior_source, compile_s, xla_memory, total_bytes, arguments, machine, upcast): the last is whether the backend
    is known to convert bfloat16 to float32 for its products, so that `temp` holds float32 copies which an accelerator
    would not make.
  """
  work = workload.build(config, allocate=False)
  state = jax.eval_shape(lambda: workload.first_state(work))
  compiled, seconds = workload.compile_step(work, state)
  plan = planned(compiled)
  upcast = jax.default_backend() == "cpu" and config.prior.dtype == "bfloat16"
  return dict(prior_source=work.prior.source.as_dict(), compile_s=seconds, xla_memory=plan,
              total_bytes=None if plan is None else total(plan), arguments=by_argument(work, state), upcast=upcast,
              machine=timing.machine())
