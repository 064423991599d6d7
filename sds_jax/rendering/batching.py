"""A predicate for branches that stay branches under `vmap`."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.types import Array


@jax.custom_batching.custom_vmap
def any_of_batch(predicate: Array) -> Array:
  """Returns the predicate [] bool, or under `vmap` the batch's "any".

  Under `vmap`, `lax.cond` with a batched predicate computes both branches for every element. For a branch that only
  saves work, an unbatched "any" keeps the branch: either all elements skip the work or none. The function is not
  differentiable.
  """
  return predicate


@any_of_batch.def_vmap
def _any(size: int, batched: list[bool], predicate: Array) -> tuple[Any, bool]:
  # Calls the decorated function, so that an outer vmap applies the rule again.
  return any_of_batch(jnp.any(predicate)), False
