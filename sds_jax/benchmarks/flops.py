"""The floating point operations of a function, counted in its jaxpr: matrix products and convolutions only.

XLA's own `cost_analysis` counts the body of a loop once, whatever the number of trips, so `cost_analysis` cannot count
a program that renders in blocks. Here a `scan` counts as often as the scan runs. One multiplication and one addition
are 2 FLOPs. All other operations (activations, normalisations, gathers) are left out, as is usual for a share of a
machine's peak.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

Rule = Callable[[Sequence[float]], float]
"""FLOPs of each branch of a `cond` -> FLOPs of the `cond`."""


def count(function: Callable[..., Any], *args: Any, branch: Rule = max, trips: int | None = None) -> float:
  """Counts the FLOPs of one call of `function(*args)`.

  Args:
    function: any function that JAX can trace.
    *args: arrays, or their `jax.ShapeDtypeStruct`; nothing is computed.
    branch: rule for a `cond`. `max` is an upper bound; `filled` weights the expensive branch.
    trips: number of trips of each `while` loop that contains products. A loop whose number of trips is known to JAX
      is a `scan` and needs no `trips`.

  Raises:
    ValueError: a `while` loop contains products, and `trips` was not given.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, branch, trips)


def filled(share: float) -> Rule:
  """Returns the rule of a renderer in blocks.

  The renderer evaluates the fraction `share` of the blocks.

  A `cond` whose branches both contain products (shaded or not) counts as the more expensive branch.
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
  inner = [_of_jaxpr(jaxpr, branch, trips) for jaxpr in _inner_jaxprs(equation.params)]
  # The body of a scan is traced once and runs `length` times.
  if kind == "scan":
    return equation.params["length"] * sum(inner)
  if kind == "cond":
    return branch(inner)
  if kind == "while" and sum(inner):
    if trips is None:
      raise ValueError("a while loop contains matrix products, and its number of trips is not known: give `trips`")
    return trips * sum(inner)
  return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
  """Yields, in order, the jaxprs within an equation.

  The jaxprs belong to a jit, a loop, a branch or a custom rule.
  """
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      # A ClosedJaxpr holds its jaxpr in an attribute; a Jaxpr is one itself.
      item = getattr(item, "jaxpr", item)
      if hasattr(item, "eqns"):
        yield item


def _dot(equation: Any) -> float:
  """Returns 2 x size of the result x length of the contraction."""
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
  """Returns 2 x size of the result x inputs of each output.

  Padding counts as data.
  """
  kernel = equation.invars[1].aval.shape
  _, inputs, *space = equation.params["dimension_numbers"].rhs_spec
  per_output = kernel[inputs] * math.prod(kernel[axis] for axis in space)  # the kernel has the inputs of one group
  return 2.0 * equation.outvars[0].aval.size * per_output
