"""A step over many devices: which views are this device's, and the one number that all of them have to agree on.

The step is one pure function of one device's share of the views. It runs by itself on one device, under `shard_map` in
a jitted program (`parallel.mode=jit`), or under `pmap`; views are numbered over all devices, so each draws what it
would draw anywhere.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sds_jax.types import Array

VIEWS, SCENES = "views", "scenes"
"""Names of mesh axes."""


@dataclasses.dataclass(frozen=True)
class Share:
  """One device's part of the views of a step: by default all of them.

  Attributes:
    axis: the mesh axis over which the views are spread, or None on one device.
    devices: how many devices there are along it.
  """
  axis: str | None = None
  devices: int = 1

  def index(self, views: int) -> Array:
    """The numbers [views / devices] int32 of this device's views among all `views`, which they divide."""
    local = views // self.devices
    first = jax.lax.axis_index(self.axis) * local if self.axis else 0
    return first + jnp.arange(local, dtype=jnp.int32)

  def mean(self, tree: Any) -> Any:
    """The mean over all devices of a tree of float32 arrays, by one all-reduce of one vector."""
    if self.axis is None:
      return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, self.axis))
