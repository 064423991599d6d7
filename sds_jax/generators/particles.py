"""Several objects of one prompt in one run ("particles"), for estimators whose second network needs many images.

With P > 1 particles all leaves of the parameters and of the occupancy grid have a leading axis [P], and the V views of
a step are dealt to the objects in turn: view v shows object v mod P, or with groups of views group g shows object
g mod P. With P = 1 no leaf has this axis.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sds_jax.prng import as_threefry
from sds_jax.types import Array


def init(count: int, new: Callable[[Array], Any], key: Array) -> Any:
  """Returns new(key), or for count > 1 `count` results with a leading axis; consumes `key`."""
  # Without an axis for P = 1, checkpoints and programs of one object stay simple.
  return new(key) if count == 1 else jax.vmap(new)(jax.random.split(as_threefry(key), count))


def each(count: int, function: Callable[..., Any], *objects: Any) -> Any:
  """Returns function(*objects), mapped over the leading axis [count] of all `objects` if count > 1."""
  return function(*objects) if count == 1 else jax.vmap(function)(*objects)


def deal(count: int, views: Any, group: int = 1) -> Any:
  """Reshapes leaves [V, ...] to [P, V / P, ...], view v at [v mod P, v // P]; P = 1 changes nothing.

  With `group` > 1 whole groups of neighbouring views are dealt.
  """
  if count == 1:
    return views

  def dealt(leaf: Array) -> Array:
    split = leaf.reshape(-1, count, group, *leaf.shape[1:]).swapaxes(0, 1)
    return split.reshape(count, -1, *leaf.shape[1:])

  return jax.tree.map(dealt, views)


def gather(count: int, dealt: Any, group: int = 1) -> Any:
  """Inverts `deal`."""
  if count == 1:
    return dealt

  def gathered(leaf: Array) -> Array:
    return leaf.reshape(count, -1, group, *leaf.shape[2:]).swapaxes(0, 1).reshape(-1, *leaf.shape[2:])

  return jax.tree.map(gathered, dealt)


def pick(count: int, tree: Any, number: int) -> Any:
  """Returns the leaves of particle `number`; the tree itself if count = 1."""
  return tree if count == 1 else jax.tree.map(lambda leaf: leaf[number], tree)
