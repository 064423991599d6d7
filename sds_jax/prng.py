"""Random keys whose draws are right under `vmap` with every PRNG implementation of JAX.

Under `vmap` the implementations rbg and unsafe_rbg, which many programs choose on TPUs, draw a batch from the first key
alone. An example's draws would then depend on the batch and so on the number of devices. The package therefore draws
with threefry: from a key of another implementation `as_threefry` derives a threefry key.

  >>> draw = jax.vmap(lambda key: jax.random.normal(as_threefry(key)))
  >>> keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
  >>> print(bool((draw(keys)[2:] == draw(keys[2:])).all()))
  True
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

THREEFRY = "threefry2x32"


def seeded_key(seed: Array | int) -> Array:
  """Returns the threefry key of a seed, whatever implementation `jax_default_prng_impl` names.

  >>> print(jax.random.key_impl(seeded_key(0)))
  threefry2x32
  """
  return jax.random.key(seed, impl=THREEFRY)


def as_threefry(key: Array) -> Array:
  """Returns a threefry key that is a function of the key.

  Args:
    key: one key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`), of any implementation; batched by `vmap`.

  Returns:
    A threefry key as it is; for another implementation a typed threefry key that depends on all words of the key.

  Raises:
    ValueError: key is not a single key.

  >>> key = jax.random.key(0)
  >>> print(as_threefry(key) is key, jax.random.key_impl(as_threefry(jax.random.key(0, impl="unsafe_rbg"))))
  True threefry2x32
  """
  dtype = getattr(key, "dtype", None)
  typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
  if not (typed or dtype == jnp.uint32) or jnp.ndim(key) != (0 if typed else 1):
    kind = type(key).__name__ if dtype is None else f"an array of shape {jnp.shape(key)} and dtype {dtype}"
    raise ValueError(f"key is {kind}; legal: one key, such as jax.random.key(0); use vmap for several keys")
  if typed and jax.random.key_impl(key) == THREEFRY:
    return key
  words = jax.random.key_data(key).reshape(-1) if typed else jnp.asarray(key)
  if not typed and words.shape == (2,) and jax.config.jax_default_prng_impl == THREEFRY:
    return key
  first, rest = jnp.pad(words[:2], (0, max(0, 2 - words.size))), words[2:]
  derived = jax.random.wrap_key_data(first, impl=THREEFRY)
  for word in rest:
    derived = jax.random.fold_in(derived, word)
  return derived


def example_keys(key: Array, index: Array) -> Array:
  """Returns a key for each example, keys [B] of index [B].

  Args:
    key: one key, see `as_threefry`; example b consumes fold_in(key, index[b]).
    index: [B] integer, indices of the examples in the whole batch.

  >>> print(example_keys(jax.random.key(0), jnp.arange(3)).shape)
  (3,)
  """
  key = as_threefry(key)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
