"""A step over many devices: the views of one device, and the mean over all devices.

The step is one pure function of one device's share of the views. It runs by itself on one device, under `shard_map` in
a jitted program (`parallel.mode=jit`), or under `pmap`; views are numbered over all devices, so a
view's random draws do not depend on the number of devices.
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
    devices: number of devices along the axis.
  """
  axis: str | None = None
  devices: int = 1

  def index(self, views: int) -> Array:
    """Returns the numbers [views / devices] int32 of this device's views among all `views`."""
    local = views // self.devices
    # In blocks and not in turn: neighbouring views, such as the frames of a particle, stay on one device.
    first = jax.lax.axis_index(self.axis) * local if self.axis else 0
    return first + jnp.arange(local, dtype=jnp.int32)

  def mean(self, tree: Any) -> Any:
    """Returns the mean over all devices of a tree of float32 arrays.

    One all-reduce of one vector suffices.
    """
    if self.axis is None:
      return tree
    # One vector: an all-reduce for each of many small arrays would pay its latency many times.
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, self.axis))
