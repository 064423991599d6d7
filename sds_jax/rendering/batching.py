"""Branches that stay branches under `vmap`."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.types import Array


@jax.custom_batching.custom_vmap
def any_of_batch(predicate: Array) -> Array:
  """A predicate [] bool; under `vmap` whether it holds for any of the batch, the same for all.

  `lax.cond` with a batched predicate computes both branches for everybody. Where a branch only saves work, asking
  whether anybody wants the other one keeps it a branch, for scenes that are made together. No gradient passes.
  """
  return predicate


@any_of_batch.def_vmap
def _any(size: int, batched: list[bool], predicate: Array) -> tuple[Any, bool]:
  # Through the rule again, for a vmap around this one.
  return any_of_batch(jnp.any(predicate)), False
