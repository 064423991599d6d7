"""Shapes and dtypes of a network's parameters, without the parameters."""
from __future__ import annotations

import functools

import flax.linen as nn
from flax import traverse_util
import jax


def abstract_params(model: nn.Module) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Returns {Flax path: shape and dtype} of a network's parameters; allocates nothing.

  Raises:
    TypeError: the class of the network lacks the method `example_inputs`.
  """
  if not hasattr(model, "example_inputs"):
    raise TypeError(f"{type(model).__name__} has no method example_inputs() and so cannot be read from a checkpoint")
  try:
    hash(model)
  except TypeError:  # a user's network may have a list among its fields
    return _traced_params.__wrapped__(model)
  return dict(_traced_params(model))


# Every opening of a prior asks two or three times, and tracing a U-Net takes a second.
@functools.lru_cache(maxsize=64)
def _traced_params(model: nn.Module) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  # Traced and never run: a network of billions of parameters costs no memory here.
  tree = jax.eval_shape(lambda *inputs: model.init(jax.random.key(0), *inputs), *model.example_inputs())["params"]
  return traverse_util.flatten_dict(tree)
