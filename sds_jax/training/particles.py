"""Several objects of one prompt in one run ("particles"), so that VSD's second network learns of more than one image.

With `training.particles` P > 1 all leaves of a state's parameters and occupancy grid have a leading axis [P], and the
V views of a step are dealt out to the objects in turn: view v is of object v mod P. With P = 1 there is no such axis.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from sds_jax.training.state import TrainState
from sds_jax.types import Array, Params


def count(config: ml_collections.FrozenConfigDict) -> int:
  """P of a validated config; 1 for a job that has no such setting."""
  return config.training.get("particles", 1)


def init(config: ml_collections.FrozenConfigDict, new: Callable[[Array], Params], key: Array) -> Params:
  """new(key), or P of them with a leading axis; consumes `key`."""
  return new(key) if count(config) == 1 else jax.vmap(new)(jax.random.split(key, count(config)))


def each(config: ml_collections.FrozenConfigDict, function: Callable[..., Any], *objects: Any) -> Any:
  """function(*objects), or of every particle, all of `objects` with a leading axis [P]."""
  return function(*objects) if count(config) == 1 else jax.vmap(function)(*objects)


def deal(config: ml_collections.FrozenConfigDict, views: Any) -> Any:
  """Leaves [V, ...] as [P, V / P, ...], view v at [v mod P, v // P]; as they are with one particle."""
  parts = count(config)
  if parts == 1:
    return views
  return jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), views)


def gather(config: ml_collections.FrozenConfigDict, dealt: Any) -> Any:
  """The inverse of `deal`."""
  if count(config) == 1:
    return dealt
  return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), dealt)


def pick(config: ml_collections.FrozenConfigDict, state: TrainState, number: int) -> TrainState:
  """The state of one object, as of a run of its own; the optimiser's state is left as it is."""
  if count(config) == 1:
    return state
  take = lambda leaf: leaf[number]  # noqa: E731
  return dataclasses.replace(state, params=jax.tree.map(take, state.params), ema=jax.tree.map(take, state.ema),
                             occupancy=jax.tree.map(take, state.occupancy))
