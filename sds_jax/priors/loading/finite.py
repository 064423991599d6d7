"""Finds NaN and infinity in weights as they are read."""
from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading.files import CheckpointError

_INTEGERS = {2: (np.int16, np.uint16), 4: (np.int32, np.uint32), 8: (np.int64, np.uint64)}


def is_finite(array: np.ndarray) -> bool:
  """Returns whether a floating-point array has neither NaN nor infinity.

  Two reductions over the bits, without a temporary array: in every IEEE format (bfloat16 too) the bits of infinity and
  NaN are the largest of each sign.
  """
  if not array.size:
    return True
  signed, unsigned = _INTEGERS[array.dtype.itemsize]
  infinity = np.array(np.inf, array.dtype)
  positive = int(infinity.view(signed))
  negative = int((-infinity).view(unsigned))
  return int(array.view(signed).max()) < positive and int(array.view(unsigned).max()) < negative


def check_finite(file: Path, key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns a stored tensor in `dtype`.

  Args:
    file, key: of the tensor, for the message.
    array: as stored.
    dtype: of the result.

  Raises:
    CheckpointError: the tensor has NaN or infinity in the file, or values outside the range of `dtype`.
  """
  with np.errstate(over="ignore"):
    cast = array.astype(dtype, copy=False)
  if is_finite(cast):
    return cast
  # float32 holds every value of the types of 8 and 16 bits.
  bad = ~np.isfinite(array.astype(jnp.float32) if array.dtype.itemsize <= 2 else array)
  if bad.any():
    place = [int(i) for i in np.argwhere(bad)[0]]
    raise CheckpointError(f"{file}: the tensor {key} has {int(bad.sum())} values of {array.size} that are NaN or "
                          f"infinite, the first at {place}; take an undamaged copy of the file")
  raise CheckpointError(f"{file}: the tensor {key} has values outside the range of {dtype.name} (at most "
                        f"{jnp.finfo(dtype).max}); use another dtype, as bfloat16 or float32")
