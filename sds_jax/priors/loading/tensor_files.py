"""Gives one view of all files of weights: {name: dtype, shape, and a function that reads the tensor}.

Tensors of safetensors are read by their offsets, so every dtype of ml_dtypes works. Tensors of torch's archives come
from `pickles`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
import struct
from typing import Any
import warnings

import ml_dtypes
import numpy as np

from sds_jax.priors.loading.files import CheckpointError, check_file, read_header
from sds_jax.priors.loading.pickles import describe_ignored, open_archive

DTYPES: dict[str, Any] = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32,
  "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
  "BOOL": np.bool_}
"""{dtype in a safetensors header: dtype of the array}."""
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Dtypes of parameters, by their names in safetensors."""
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_SCALES = (".scale_weight", ".weight_scale")
"""Endings of the names of scales that multiply 8-bit weights (ComfyUI's "scaled fp8")."""
_LARGEST_RANK = 16


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file, unread.

  Attributes:
    dtype: its name in safetensors ("F16", "BF16", ...).
    shape: its shape, in torch's layout.
    read: () -> a new host array of this dtype and shape.
  """
  dtype: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def open_tensors(path: Path) -> dict[str, Tensor]:
  """Returns {name: tensor} of a safetensors file or of torch's archive, from headers alone.

  8-bit weights with a scale of their own (`X.scale_weight` beside `X.weight`) are one tensor, the product in float32.

  Raises:
    CheckpointError: the file is missing, damaged, or of another format.
  """
  check_file(path)
  with open(path, "rb") as file:
    head = file.read(9)
  # A safetensors file begins with the length of its header, whose first bytes may be those of any other format: 128 is
  # the first byte of a pickle, 19280 the first two of an archive.
  is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32
  if head[:2] == b"PK" and not is_safetensors:
    tensors = _archive(path)
  elif head[:1] == b"\x80" and not is_safetensors or path.suffix == ".msgpack":
    raise CheckpointError(f"{path} is a pickle of torch before 1.6, or another pickle, which is not read: convert it "
                          "where you trust it, by safetensors.torch.save_file(torch.load(OLD, map_location='cpu', "
                          "weights_only=True), NEW)")
  else:
    tensors = _safetensors(path)
  return _scaled(path, tensors)


def _archive(path: Path) -> dict[str, Tensor]:
  archived, ignored = open_archive(path)
  warnings.warn(f"{path} is a pickle, of which only the tensors are read{describe_ignored(ignored)}. Safetensors are "
                "safer and faster: `python -m sds_jax.priors.convert IN OUT` writes them", stacklevel=4)
  return {name: Tensor(_NAMES[tensor.view.dtype], tensor.view.shape, tensor.read) for name, tensor in archived.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
  header, start = read_header(path)
  size = path.stat().st_size
  tensors: dict[str, Tensor] = {}
  spans = []
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    problem = _entry_problem(entry)
    if problem:
      raise _damaged(path, size, f"the tensor {name[:200]} {problem}")
    begin, end = entry["data_offsets"]
    spans.append((begin, end))
    tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), functools.partial(
      _read_span, path, name, start + begin, end - begin, DTYPES.get(entry["dtype"]), tuple(entry["shape"])))
  # Parts that overlap would be read twice, and a hole would hide data.
  end = 0
  for first, last in sorted(spans):
    if first != end:
      raise _damaged(path, size, f"invalid offset {first}, expected {end}")
    end = last
  if start + end != size:
    raise _damaged(path, size, f"its tensors end at byte {start + end}")
  return tensors


def _entry_problem(entry: Any) -> str:
  """Returns what is wrong with an entry of a header, or ""."""
  if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
    return "has no dtype"
  shape, offsets = entry.get("shape"), entry.get("data_offsets")
  if not _sizes(shape) or len(shape) > _LARGEST_RANK or not _sizes(offsets) or len(offsets) != 2:
    return "has no shape or no offsets"
  if offsets[1] < offsets[0]:
    return "has an invalid offset"
  dtype = DTYPES.get(entry["dtype"])
  # The sizes of other dtypes are not known, and no parameter may have them.
  if dtype is not None and offsets[1] - offsets[0] != math.prod(shape) * np.dtype(dtype).itemsize:
    return f"has {offsets[1] - offsets[0]} bytes, which is not its shape's number"
  return ""


def _sizes(values: Any) -> bool:
  return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _damaged(path: Path, size: int, reason: str) -> CheckpointError:
  return CheckpointError(f"{path} ({size} bytes) is damaged or truncated, download it again: {reason}")


def _read_span(path: Path, name: str, start: int, size: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the array in `size` bytes of a file."""
  if dtype is None:
    raise CheckpointError(f"{path}: the dtype of {name} is not supported")
  data = np.fromfile(path, np.uint8, size, offset=start)
  if len(data) < size:
    raise CheckpointError(f"{path} was changed while it was read: {name} is cut off")
  return data.view(dtype).reshape(shape)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]],
                      read: Callable[[str], np.ndarray]) -> None:
  """Writes a safetensors file tensor by tensor, so that no two are in memory.

  Args:
    path: of the file.
    tensors: {name: (dtype in safetensors, shape)}.
    read: (name) -> the array of this dtype and shape.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, (dtype, shape) in tensors.items():
    begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])
  text = json.dumps(header, separators=(",", ":")).encode()
  # The data begin at a multiple of 8 bytes, as the library writes them.
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name, (dtype, shape) in tensors.items():
      array = np.ascontiguousarray(read(name))
      if array.dtype != np.dtype(DTYPES[dtype]) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}")
      file.write(array.reshape(-1).view(np.uint8).data)


def _scaled(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Returns the tensors with 8-bit weights multiplied by the scales beside them, and without those scales.

  The marks of such files and the scales of activations are left out.
  """
  scaled = {}
  for name, scale in tensors.items():
    ending = next((ending for ending in _SCALES if name.endswith(ending)), None)
    weight = name.removesuffix(ending or "") + ".weight"
    if ending and weight in tensors:
      if tensors[weight].dtype not in ("F8_E4M3", "F8_E5M2") or scale.dtype not in FLOATS or \
          math.prod(scale.shape) not in (1, tensors[weight].shape[0]):
        raise CheckpointError(f"{path}: {name} is {scale.dtype} {list(scale.shape)}, expected one number for "
                              f"{weight}, or one for each of its rows, and {weight} in 8 bits")
      scaled[weight] = Tensor("F32", tensors[weight].shape, functools.partial(_product, tensors[weight], scale))
  marks = ("scaled_fp8", "comfy_quant", "scale_input", "input_scale")
  kept = {name: tensor for name, tensor in tensors.items()
          if not (name.endswith(_SCALES) and name.rsplit(".", 1)[0] + ".weight" in scaled)
          and name.rsplit(".", 1)[-1] not in marks}
  return kept | scaled


def _product(weight: Tensor, scale: Tensor) -> np.ndarray:
  """Returns the weight times its scale, float32."""
  factor = scale.read().astype(np.float32)
  rows = factor.reshape(-1, *[1] * (len(weight.shape) - 1))
  return weight.read().astype(np.float32) * rows
