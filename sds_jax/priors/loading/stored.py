"""Where a parameter is stored, and how the parameter is changed on its way to the network."""
from __future__ import annotations

from collections.abc import Callable
import dataclasses
from pathlib import Path

import numpy as np

from sds_jax.priors.loading.finite import check_finite

Change = Callable[[np.ndarray], np.ndarray]
"""(float32 array in torch's layout) -> the array to use in its place, in the same layout."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a parameter is stored.

  Attributes:
    file, key: the file and the name in the file, for messages.
    shape: the network's shape of the parameter, in torch's layout.
    read: () -> the tensor as a new host array; its shape may have further axes of length 1.
    dtype: name of its dtype in safetensors.
    change: of the parameter, as a LoRA changes weights; None: the parameter is used as stored.
  """
  file: Path
  key: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]
  dtype: str = "F32"
  change: Change | None = None


def changed(stored: Stored, array: np.ndarray) -> np.ndarray:
  """Returns a tensor as read, in the network's shape and after the change of `stored`, if any.

  Raises:
    CheckpointError: a tensor to be changed has NaN or infinity.
  """
  array = array.reshape(stored.shape)
  if stored.change is None:
    return array
  # float32, so that a small change is not lost to the rounding of 16-bit weights.
  return stored.change(check_finite(stored.file, stored.key, array, np.dtype(np.float32)))
