"""The record of a checkpoint: structure, dtypes and shapes of the state, and a digest of every leaf."""
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
"""Version of the record and of the storage of leaves; other versions are rejected."""


class DamagedCheckpointError(OSError):
  """A damaged checkpoint: files are missing, cut, changed or unreadable."""


class SchemaError(ValueError):
  """A whole checkpoint with another structure, shape, dtype or SCHEMA than expected."""


def flatten(tree: Any) -> dict[str, tuple[tuple[str, ...], Any]]:
  """Returns {dotted name: (path, leaf)} of a pytree.

  None and empty containers have no leaves.

  Raises:
    ValueError: the tree is a bare leaf, or two leaves have the same name ({"a.b": x, "a": {"b": y}}).
  """
  leaves: dict[str, tuple[tuple[str, ...], Any]] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    # Key types have a name (dataclass), a key (dictionary) or an index (sequence).
    path = tuple(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in keys)
    name = ".".join(path)
    if not path or name in leaves:
      raise ValueError(f"two leaves of the state are called {name!r}" if path else "the state is a bare leaf")
    leaves[name] = path, leaf
  return leaves


def nest(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
  """Returns nested dictionaries for {path: leaf}."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    inner = tree
    for part in path[:-1]:
      inner = inner.setdefault(part, {})
    inner[path[-1]] = leaf
  return tree


def kind(leaf: Any) -> str:
  """Returns dtype and shape as text: "float32[8, 3]", or "key<fry>[]" for keys."""
  leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
  return f"{leaf.dtype}{list(leaf.shape)}"


def is_key(leaf: Any) -> bool:
  """Returns whether a leaf holds typed keys (`jax.random.key`)."""
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def copy_to_host(leaf: Any) -> np.ndarray:
  """Copies a leaf to a NumPy array.

  C-contiguous and of native byte order; keys become their data.

  Raises:
    ValueError: the leaf does not hold numbers.
  """
  # A copy, never a view: the next training step is given the memory of the state (donation).
  array = np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C", copy=True)
  # Objects, text, bytes, dates and time spans. bfloat16 has the kind V and passes.
  if array.dtype.kind in "OUSMm":
    raise ValueError(f"a checkpoint holds numbers, not {array.dtype}")
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def digest(array: np.ndarray) -> str:
  """Computes the SHA-256 of the bytes of a C-contiguous array."""
  # Flattened first, since an array without axes has no view of another item size.
  return hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()


def describe_leaf(leaf: Any, path: tuple[str, ...]) -> dict[str, Any]:
  """Returns a leaf's entry in the record, without the digest."""
  entry: dict[str, Any] = dict(path=list(path), kind=kind(leaf))
  # Stored are the integers of the keys; `impl` tells how to make keys of them again.
  if is_key(leaf):
    entry |= dict(impl=str(jax.random.key_impl(leaf)), data=kind(jax.eval_shape(jax.random.key_data, leaf)))
  return entry


def make_record(step: int, leaves: dict[str, dict[str, Any]], metadata: dict[str, Any]) -> dict[str, Any]:
  """Returns a checkpoint's record with a digest.

  Args:
    step: number of the checkpoint.
    leaves: {name: entry of `describe_leaf`, with the leaf's sha256}.
    metadata: JSON, stored under "about".

  Raises:
    TypeError, ValueError: `metadata` is not JSON.
  """
  versions = {"sds_jax": sds_jax.__version__, "jax": jax.__version__, "orbax-checkpoint": ocp.__version__}
  record = dict(schema=SCHEMA, step=step, written_by=versions, leaves=leaves, about=metadata)
  # Through JSON before the digest: a tuple becomes a list, as in the record read back later.
  record = json.loads(json.dumps(record))
  return dict(record, sha256=_digest_of(record))


def read_record(path: Path, step: int) -> dict[str, Any]:
  """Reads and verifies a record.

  Raises:
    DamagedCheckpointError: the record cannot be read, was changed, or belongs to another step.
    SchemaError: the record has another SCHEMA.
  """
  try:
    record = json.loads(path.read_bytes())
    stored_digest = record.pop("sha256")
  # AttributeError and TypeError: JSON, but no object. RecursionError: brackets nested thousands deep.
  except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise DamagedCheckpointError(f"its record {path.name} cannot be read ({one_line(error)})") from error
  # Before the schema is looked at: a flipped bit in `schema` is damage and no other version.
  if stored_digest != _digest_of(record):
    raise DamagedCheckpointError(f"its record {path.name} has changed")
  if record.get("schema") != SCHEMA:
    raise SchemaError(f"it has schema {record.get('schema')} and was written by {writer_versions(record)}; this is "
                      f"sds_jax {sds_jax.__version__}, which reads schema {SCHEMA}")
  if record["step"] != step:
    raise DamagedCheckpointError(f"its record is of step {record['step']}")
  return record


def check_structure(record: dict[str, Any], wanted: dict[str, tuple[tuple[str, ...], Any]]) -> None:
  """Raises SchemaError unless the record has the `wanted` leaves.

  The message names the first differing leaf.
  """
  stored = {name: leaf["kind"] for name, leaf in record["leaves"].items()}
  expected = {name: kind(leaf) for name, (_, leaf) in wanted.items()}
  for name in sorted(stored.keys() | expected.keys()):
    if stored.get(name) != expected.get(name):
      raise SchemaError(f"{name} is {stored.get(name, 'absent')} in the checkpoint and "
                        f"{expected.get(name, 'absent')} in the run; the checkpoint was written by "
                        f"{writer_versions(record)}")


def check_leaf(name: str, array: np.ndarray, entry: dict[str, Any]) -> None:
  """Raises DamagedCheckpointError unless the array fits the entry.

  Dtype, shape and digest must be those of the entry.
  """
  saved = entry.get("data", entry["kind"])
  if kind(array) != saved:
    raise DamagedCheckpointError(f"{name} is {kind(array)} and was {saved}")
  if digest(array) != entry["sha256"]:
    raise DamagedCheckpointError(f"{name} has changed")


def place_leaf(array: np.ndarray, entry: dict[str, Any], like: Any) -> Any:
  """Returns the leaf in the form of `like`.

  The leaf is a NumPy array, or a jax.Array with the same sharding.

  Raises:
    SchemaError: JAX would round the leaf to 32 bits.
  """
  sharding = getattr(like, "sharding", None)
  if "impl" in entry:
    keys = jax.random.wrap_key_data(array, impl=entry["impl"])
    return keys if sharding is None else jax.device_put(keys, sharding)
  if isinstance(like, (np.ndarray, np.generic)):
    return array
  # Without x64 `device_put` would make float32 of float64 without a word.
  if not _jax_holds(array.dtype):
    raise SchemaError(f"{array.dtype} is wanted in JAX's arrays, which takes jax_enable_x64")
  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  # A sharding over several processes: each process makes the shards of its own devices.
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def abstract_leaf(entry: dict[str, Any]) -> jax.ShapeDtypeStruct | np.ndarray:
  """Returns an entry's shape and dtype.

  The device is the first one. A dtype too wide for JAX gives a NumPy array instead (zeros with stride 0, which take no
  memory).
  """
  # The dtype of typed keys has no name for jnp.dtype; eval_shape gives the dtype without making a key.
  name, shape = _parsed(entry["kind"])
  dtype = jax.eval_shape(lambda: jax.random.key(0, impl=entry["impl"])).dtype if "impl" in entry else jnp.dtype(name)
  if "impl" not in entry and not _jax_holds(dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def empty_leaf(entry: dict[str, Any]) -> np.ndarray | None:
  """Returns the array of an entry without elements; None for other entries."""
  dtype, shape = _parsed(entry.get("data", entry["kind"]))
  return np.zeros(shape, jnp.dtype(dtype)) if 0 in shape else None


def writer_versions(record: dict[str, Any]) -> str:
  """Returns the versions that wrote the record, for messages."""
  versions = record.get("written_by", {})
  return ", ".join(f"{name} {version}" for name, version in versions.items()) or "an unknown version"


def one_line(error: BaseException) -> str:
  """Returns the beginning of an error's message.

  The error's type if the message is empty.
  """
  return " ".join(str(error).split())[:160] or type(error).__name__


def _jax_holds(dtype: np.dtype) -> bool:
  return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _parsed(kind_of_leaf: str) -> tuple[str, tuple[int, ...]]:
  dtype, _, shape = kind_of_leaf.partition("[")
  return dtype, tuple(json.loads("[" + shape))


def _digest_of(record: dict[str, Any]) -> str:
  # Sorted keys: the digest depends on the content alone.
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
