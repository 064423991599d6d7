"""What is written beside a state so that a checkpoint cannot lie: what it is made of, and a digest of every part."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import sds_jax

SCHEMA = 1
"""Of the record and of how leaves are stored; another number is refused, never guessed at."""


class DamagedCheckpointError(OSError):
  """A checkpoint whose bytes are not those that were written: files missing, cut, changed or unreadable."""


class SchemaError(ValueError):
  """A whole checkpoint of something else: another structure, shape or dtype than is wanted, or another SCHEMA."""


def flatten(tree: Any) -> dict[str, tuple[tuple[str, ...], Any]]:
  """{dotted name: (path, leaf)} of a pytree; None and empty containers have no leaves.

  Raises:
    ValueError: the tree is a bare leaf, or two leaves have one name ({"a.b": x, "a": {"b": y}}).
  """
  found: dict[str, tuple[tuple[str, ...], Any]] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = tuple(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in keys)
    name = ".".join(path)
    if not path or name in found:
      raise ValueError(f"two leaves of the state are called {name!r}" if path else "the state is a bare leaf")
    found[name] = path, leaf
  return found


def nest(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
  """{path: leaf} as nested dictionaries."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    inner = tree
    for part in path[:-1]:
      inner = inner.setdefault(part, {})
    inner[path[-1]] = leaf
  return tree


def kind(leaf: Any) -> str:
  """"float32[8, 3]", for keys "key<fry>[]": what must agree between a checkpoint and what is wanted of it."""
  leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
  return f"{leaf.dtype}{list(leaf.shape)}"


def is_key(leaf: Any) -> bool:
  """Whether these are typed keys (`jax.random.key`)."""
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def on_host(leaf: Any) -> np.ndarray:
  """A copy that nothing else will change, C-contiguous, of the native byte order; of keys their data.

  A view would not do: the next step takes over the memory of the state.

  Raises:
    ValueError: it is not made of numbers.
  """
  array = np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C", copy=True)
  if array.dtype.kind in "OUSMm":
    raise ValueError(f"a checkpoint holds numbers, not {array.dtype}")
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def digest(array: np.ndarray) -> str:
  """SHA-256 of the bytes of a C-contiguous array."""
  return hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()


def describe(leaf: Any, path: tuple[str, ...]) -> dict[str, Any]:
  """What the record says of a leaf, but for its digest."""
  said: dict[str, Any] = dict(path=list(path), kind=kind(leaf))
  if is_key(leaf):
    said |= dict(impl=str(jax.random.key_impl(leaf)), data=kind(jax.eval_shape(jax.random.key_data, leaf)))
  return said


def seal(step: int, leaves: dict[str, dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
  """The record: `leaves` {name: of `describe`, with sha256}, `about` as it was given, and a digest of all this.

  Raises:
    TypeError, ValueError: `about` cannot be JSON.
  """
  versions = {"sds_jax": sds_jax.__version__, "jax": jax.__version__, "orbax-checkpoint": ocp.__version__}
  record = dict(schema=SCHEMA, step=step, written_by=versions, leaves=leaves, about=about)
  record = json.loads(json.dumps(record))  # as it will be read: tuples have become lists
  return dict(record, sha256=_seal_of(record))


def read(path: Path, step: int) -> dict[str, Any]:
  """A record that is whole and of this SCHEMA.

  Raises:
    DamagedCheckpointError: it is not the one that was written.
    SchemaError: it was written under another SCHEMA.
  """
  try:
    record = json.loads(path.read_bytes())
    seal_there = record.pop("sha256")
  except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise DamagedCheckpointError(f"its record {path.name} cannot be read ({one_line(error)})") from error
  if seal_there != _seal_of(record):
    raise DamagedCheckpointError(f"its record {path.name} has changed")
  if record.get("schema") != SCHEMA:
    raise SchemaError(f"it has schema {record.get('schema')} and was written by {writer(record)}; this is sds_jax "
                      f"{sds_jax.__version__}, which reads schema {SCHEMA}")
  if record["step"] != step:
    raise DamagedCheckpointError(f"its record is of step {record['step']}")
  return record


def compare(record: dict[str, Any], wanted: dict[str, tuple[tuple[str, ...], Any]]) -> None:
  """Raise SchemaError, which tells of the first leaf that differs, unless the record is of these leaves."""
  there = {name: leaf["kind"] for name, leaf in record["leaves"].items()}
  here = {name: kind(leaf) for name, (_, leaf) in wanted.items()}
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      raise SchemaError(f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here; "
                        f"it was written by {writer(record)}")


def check(name: str, array: np.ndarray, said: dict[str, Any]) -> None:
  """Raise DamagedCheckpointError unless these are the bytes that the record tells of."""
  was = said.get("data", said["kind"])
  if kind(array) != was:
    raise DamagedCheckpointError(f"{name} is {kind(array)} and was {was}")
  if digest(array) != said["sha256"]:
    raise DamagedCheckpointError(f"{name} has changed")


def place(array: np.ndarray, said: dict[str, Any], like: Any) -> Any:
  """The leaf as `like` is: numpy, or a jax.Array with its sharding, however many devices that has.

  Raises:
    SchemaError: JAX would round it.
  """
  sharding = getattr(like, "sharding", None)
  if "impl" in said:
    keys = jax.random.wrap_key_data(array, impl=said["impl"])
    return keys if sharding is None else jax.device_put(keys, sharding)
  if isinstance(like, (np.ndarray, np.generic)):
    return array
  if not _jax_holds(array.dtype):
    raise SchemaError(f"{array.dtype} is wanted in JAX's arrays, which takes jax_enable_x64")
  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def abstract(said: dict[str, Any]) -> jax.ShapeDtypeStruct | np.ndarray:
  """A leaf of the record, on the first device; as numpy's (of zeros without memory) where JAX would round it."""
  name, shape = _parsed(said["kind"])
  dtype = jax.eval_shape(lambda: jax.random.key(0, impl=said["impl"])).dtype if "impl" in said else jnp.dtype(name)
  if "impl" not in said and not _jax_holds(dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def empty(said: dict[str, Any]) -> np.ndarray | None:
  """A leaf of the record that has no elements; None where it has some."""
  dtype, shape = _parsed(said.get("data", said["kind"]))
  return np.zeros(shape, jnp.dtype(dtype)) if 0 in shape else None


def writer(record: dict[str, Any]) -> str:
  """Which version has written it, for messages."""
  return ", ".join(f"{name} {version}" for name, version in record.get("written_by", {}).items()) or "who knows what"


def one_line(error: BaseException) -> str:
  """The beginning of an error's message, or its name where it has none."""
  return " ".join(str(error).split())[:160] or type(error).__name__


def _jax_holds(dtype: np.dtype) -> bool:
  return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _parsed(kind_of_leaf: str) -> tuple[str, tuple[int, ...]]:
  dtype, _, shape = kind_of_leaf.partition("[")
  return dtype, tuple(json.loads("[" + shape))


def _seal_of(record: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
