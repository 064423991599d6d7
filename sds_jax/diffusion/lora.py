"""Low-rank adapters (LoRA, arXiv:2106.09685) as a pytree beside a network's parameters.

A pure function on parameters replaces the kernels W of a network by W + down @ up. No layer changes, so that any Flax
network takes adapters, and differentiating with respect to the adapters trains the adapters alone.

  >>> params = dict(block=dict(to_q=dict(kernel=jnp.ones((4, 4)), bias=jnp.zeros(4))))
  >>> adapters = init(jax.random.key(0), params, rank=2)
  >>> print(sorted(adapters), bool((merge(params, adapters)["block"]["to_q"]["kernel"] == 1).all()))
  ['block/to_q/kernel'] True
"""
from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from sds_jax.types import Array, Params

ATTENTION = r"(to_q|to_k|to_v|to_out_0|add_k_proj|add_v_proj)/kernel$"
"""The attention projections of U-Nets in diffusers' names, which is where LoRA usually goes."""

Adapters = dict[str, dict[str, Array]]
"""Path of a kernel [n, m] -> down [n, rank] and up [rank, m]."""


def init(key: Array, params: Params, rank: int = 4, match: str = ATTENTION) -> Adapters:
  """Returns adapters that change nothing yet.

  `down` is random of standard deviation 1 / rank, `up` is 0.

  Args:
    key: consumed.
    params: nested dictionaries of arrays or of `jax.ShapeDtypeStruct`.
    rank: inner dimension.
    match: regular expression that is searched for in each path ("a/b/kernel").

  Returns:
    float32 adapters of the kernels of two dimensions that match.

  Raises:
    ValueError: nothing matches.

  >>> adapters = init(jax.random.key(0), dict(to_k=dict(kernel=jnp.ones((6, 4)))), rank=2)
  >>> print({path: (pair['down'].shape, pair['up'].shape) for path, pair in adapters.items()})
  {'to_k/kernel': ((6, 2), (2, 4))}
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  kernels = {path: leaf.shape for path, leaf in flat.items() if re.search(match, path) and len(leaf.shape) == 2}
  if not kernels:
    raise ValueError(f"no kernel of two dimensions matches {match!r}; there are {', '.join(list(flat)[:5])}, ...")
  # Sorted, so that the key of a kernel does not depend on the order of the dictionary.
  # The deviation of `down` is that of diffusers' LoRA layers.
  return {path: dict(down=jax.random.normal(k, (n, rank)) / rank, up=jnp.zeros((rank, m)))
          for k, (path, (n, m)) in zip(jax.random.split(key, len(kernels)), sorted(kernels.items()))}


def merge(params: Params, adapters: Adapters, scale: Array | float = 1.0) -> Params:
  """Returns the network's parameters with `scale` down @ up added to kernels.

  The kernels are those of the adapters; dtypes stay.

  Args:
    params: as `init` had them; they get no gradient.
    adapters: of `init`.
    scale: a scalar; 0 leaves the network unchanged.

  Raises:
    KeyError: `params` has no kernel for an adapter.

  >>> params, pair = dict(to_k=dict(kernel=jnp.ones((2, 2)))), dict(down=jnp.ones((2, 1)), up=jnp.array([[0.0, 0.5]]))
  >>> print(merge(params, {'to_k/kernel': pair})['to_k']['kernel'])
  [[1.  1.5]
   [1.  1.5]]
  """
  # Frozen: gradients of the kernels themselves would be computed and thrown away.
  flat = dict(traverse_util.flatten_dict(jax.lax.stop_gradient(params), sep="/"))
  for path, adapter in adapters.items():
    change = scale * (adapter["down"] @ adapter["up"])
    # The product is made in the adapters' float32, and rounded once to the dtype of the kernel.
    flat[path] = flat[path] + change.astype(flat[path].dtype)
  return traverse_util.unflatten_dict(flat, sep="/")
