"""Floating point operations of a function, counted on what JAX traced: matrix products and convolutions only.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length, so it is of no use for a program that
renders in blocks. Here a `scan` counts as often as it runs. One multiplication and addition are 2 FLOPs. Everything
else (activations, normalisations, gathers) is left out, as is usual where a share of a machine's peak is given.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

Rule = Callable[[Sequence[float]], float]
"""FLOPs of each branch of a `cond` -> FLOPs of the `cond`."""


def count(function: Callable[..., Any], *args: Any, branch: Rule = max, trips: int | None = None) -> float:
  """FLOPs of one call of `function(*args)`.

  Args:
    function: anything that JAX can trace.
    *args: arrays, or their `jax.ShapeDtypeStruct`; nothing is computed.
    branch: what a `cond` costs. `max` is an upper bound; `filled` says how often the expensive branch is taken.
    trips: how often each `while` loop runs that has products in it; a loop with a number of trips known beforehand is
      a `scan` and needs none.

  Raises:
    ValueError: such a `while` loop was found and `trips` was not given.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, branch, trips)


def filled(share: float) -> Rule:
  """The rule of a renderer in blocks, of which the fraction `share` is evaluated and the others do nothing.

  A `cond` both of whose branches have products (shaded or not) counts as its dearer branch.
  """
  return lambda flops: max(flops) if min(flops) else share * max(flops)


def _of_jaxpr(jaxpr: Any, branch: Rule, trips: int | None) -> float:
  return sum(_of_equation(equation, branch, trips) for equation in jaxpr.eqns)


def _of_equation(equation: Any, branch: Rule, trips: int | None) -> float:
  kind = equation.primitive.name
  if kind == "dot_general":
    return _dot(equation)
  if kind == "conv_general_dilated":
    return _convolution(equation)
  inner = [_of_jaxpr(jaxpr, branch, trips) for jaxpr in _inner(equation.params)]
  if kind == "scan":
    return equation.params["length"] * sum(inner)
  if kind == "cond":
    return branch(inner)
  if kind == "while" and sum(inner):
    if trips is None:
      raise ValueError("a while loop has matrix products in it, and nobody knows how often it runs: give `trips`")
    return trips * sum(inner)
  return sum(inner)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The programs within an equation (of a jit, a loop, a branch, a custom rule), in order."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      item = getattr(item, "jaxpr", item)
      if hasattr(item, "eqns"):
        yield item


def _dot(equation: Any) -> float:
  """2 x size of the result x length of the contraction."""
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
  """2 x size of the result x inputs that each output sees (padding counted as if it were data)."""
  kernel = equation.invars[1].aval.shape
  _, inputs, *space = equation.params["dimension_numbers"].rhs_spec
  seen = kernel[inputs] * math.prod(kernel[axis] for axis in space)  # the kernel's inputs are those of one group
  return 2.0 * equation.outvars[0].aval.size * seen
