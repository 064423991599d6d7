"""Reads the tensors of torch's archives (.ckpt, .bin, .pt) without torch and without running code.

An archive is a zip of `data.pkl`, a pickle of the structure, and one stored member for each storage. The pickle goes
through a machine that knows numbers, texts, lists, dictionaries, storages and tensors. Any other object becomes an
inert mark: nothing is imported, and nothing that the pickle names is called.
"""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path
import pickletools
from typing import Any

import ml_dtypes
import numpy as np

from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError
from sds_jax.priors.loading.zip_members import Member, read_members

_LARGEST_PROGRAM = 500_000
"""Upper limit of the operations of a pickle; a checkpoint of SDXL has about a hundred thousand."""
_LARGEST_RANK, _LARGEST_SIZE = 8, 2**48
"""Upper limits of the dimensions of a tensor, and of the numbers in its description."""
_LISTED = 3

DTYPES: dict[str, Any] = {
  "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16, "Long": np.int64,
  "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_}
"""{class of a storage, without "Storage": dtype}."""
_TORCH_DTYPES: dict[str, Any] = {
  "torch.float64": np.float64, "torch.float32": np.float32, "torch.float16": np.float16,
  "torch.bfloat16": ml_dtypes.bfloat16, "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "torch.float8_e5m2": ml_dtypes.float8_e5m2, "torch.uint16": np.uint16, "torch.uint32": np.uint32,
  "torch.uint64": np.uint64}

_HARMLESS = ("collections.OrderedDict", "torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter")
"""Names that say nothing about a file's intent, beside torch's own rebuilding functions, storages and dtypes."""
_STATES = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "string_to_param")
"""Keys under which writers put the mapping of tensors, the likeliest first."""


@dataclasses.dataclass(frozen=True)
class Named:
  """A name in a pickle, as "os.system"; never looked up."""
  name: str


@dataclasses.dataclass(frozen=True)
class Inert:
  """What stands for an object that is not read."""


_INERT = Inert()


@dataclasses.dataclass(frozen=True)
class Storage:
  """A block of numbers: the name of its member, its dtype (None: bytes), and how many numbers it has."""
  key: str
  dtype: Any
  count: int


@dataclasses.dataclass(frozen=True)
class View:
  """A tensor as a pickle describes it: a storage, and which of its numbers (torch's offset, size and stride)."""
  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def last(self) -> int:
    """Returns the number of numbers of the storage up to the tensor's last one."""
    if 0 in self.shape:
      return self.offset
    return self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) + 1


@dataclasses.dataclass(frozen=True)
class ArchivedTensor:
  """A tensor in an archive, unread.

  Attributes:
    path: the archive.
    view: which numbers of its storage the tensor has.
    offset: where the storage's bytes begin in the archive.
  """
  path: Path
  view: View
  offset: int

  def read(self) -> np.ndarray:
    """Returns the tensor as a new array."""
    view, item = self.view, self.view.dtype.itemsize
    count = view.last - view.offset
    numbers = np.fromfile(self.path, np.uint8, count * item, offset=self.offset + view.offset * item).view(f"u{item}")
    if len(numbers) < count:
      raise CheckpointError(f"{self.path} was changed while it was read")
    strides = tuple(stride * item for stride in view.strides)
    # Strides of integers, since NumPy has none of the types of 8 bits. A copy, so that the storage is freed.
    strided = np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)
    return np.array(strided, order="C").view(view.dtype)


def open_archive(path: Path) -> tuple[dict[str, ArchivedTensor], list[str]]:
  """Returns ({name: tensor}, names in the pickle that were ignored) of torch's archive; reads no tensor.

  Raises:
    CheckpointError: the archive or its pickle is damaged, too large, or has no mapping from names to tensors.
  """
  members = read_members(path)
  programs = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(programs) != 1:
    raise CheckpointError(f"{path} is a zip archive, but none that torch wrote: it has {len(programs)} data.pkl, "
                          "expected one")
  prefix = programs[0].removesuffix("data.pkl")
  order = members.get(f"{prefix}byteorder")
  if order and _bytes(path, order) != b"little":
    raise CheckpointError(f"{path} was written on a machine of another byte order; save it anew on a common one")
  try:
    value, ignored = run(_bytes(path, members[programs[0]]))
  # Whatever a damaged pickle leads to, it is damaged.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise CheckpointError(f"{path} is damaged or no file of weights: its data.pkl cannot be followed ({reason})"
                          ) from error
  views = _state(value)
  if not views:
    also = f"; it names {_list(ignored)}, none of which is read" if ignored else ""
    raise CheckpointError(f"{path} has no mapping from names to tensors{also}: save the model's state_dict() in place "
                          "of the model")
  return {name: _place(path, name, view, members, prefix) for name, view in views.items()}, ignored


def describe_ignored(ignored: list[str]) -> str:
  """Returns ", and ..." for a sentence about an archive that names other objects, or ""."""
  return f"; it also names {_list(ignored)}, which was ignored: nothing of it was run" if ignored else ""


def _list(names: list[str]) -> str:
  return ", ".join(name[:60] for name in names[:_LISTED]) + (f" and {len(names) - _LISTED} more"
                                                             if len(names) > _LISTED else "")


def _bytes(path: Path, member: Member) -> bytes:
  if member.size > LARGEST_TEXT:
    raise CheckpointError(f"{path}: its data.pkl has {member.size} bytes, at most {LARGEST_TEXT} are read")
  with open(path, "rb") as file:
    file.seek(member.offset)
    return file.read(member.size)


def _state(value: Any) -> dict[str, View]:
  """Returns the mapping of tensors in a pickle's value: the value itself, or one of its entries."""
  if not isinstance(value, dict):
    return {}
  for candidate in (*(value.get(key) for key in _STATES), value):
    if isinstance(candidate, dict):
      views = {key: view for key, view in candidate.items() if isinstance(key, str) and isinstance(view, View)}
      if views:
        return views
  return {}


def _place(path: Path, name: str, view: View, members: dict[str, Member], prefix: str) -> ArchivedTensor:
  """Returns a tensor, after checking that its storage is in the archive and has all its numbers."""
  member = members.get(f"{prefix}data/{view.storage.key}")
  if member is None:
    raise CheckpointError(f"{path} is damaged or truncated, download it again: it lacks the numbers of {name[:200]}")
  if max(view.last, view.offset) * view.dtype.itemsize > member.size:
    raise CheckpointError(f"{path} is damaged: {name[:200]} has more numbers than its storage")
  return ArchivedTensor(path, view, member.offset)


def run(program: bytes) -> tuple[Any, list[str]]:
  """Returns (the value of a pickle, the names in it that were ignored).

  Numbers, texts, lists, tuples and dictionaries are themselves, tensors are `View`, and all else is `Inert`.

  Raises:
    Exception: of any class, for a pickle that is damaged or has too many operations.
  """
  machine = _Machine()
  for count, (operation, argument, _) in enumerate(pickletools.genops(program)):
    if count >= _LARGEST_PROGRAM:
      raise ValueError(f"more than {_LARGEST_PROGRAM} operations")
    machine.step(operation.name, argument)
  return machine.stack[-1], sorted(machine.ignored)


_PUSHED = frozenset((
  "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
  "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
  "BINUNICODE", "BINUNICODE8"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_SET": _INERT, "NEXT_BUFFER": _INERT,
              "EXT1": _INERT, "EXT2": _INERT, "EXT4": _INERT, "PERSID": _INERT}
_MARK = object()


class _Machine:
  """The stack machine of pickles (PEP 307, PEP 3154), with data only."""

  def __init__(self):
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}
    self.ignored: set[str] = set()

  def step(self, operation: str, argument: Any) -> None:
    """Does one operation."""
    stack = self.stack
    if operation in _PUSHED:
      stack.append(argument)
    elif operation in _CONSTANTS:
      stack.append(_CONSTANTS[operation])
    elif operation in ("PUT", "BINPUT", "LONG_BINPUT"):
      self.memo[argument] = stack[-1]
    elif operation == "MEMOIZE":
      self.memo[len(self.memo)] = stack[-1]
    elif operation in ("GET", "BINGET", "LONG_BINGET"):
      stack.append(self.memo[argument])
    elif operation == "MARK":
      stack.append(_MARK)
    elif operation in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
      pass
    elif operation == "POP":
      stack.pop()
    elif operation == "POP_MARK":
      self.marked()
    elif operation == "DUP":
      stack.append(stack[-1])
    elif operation in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "BINPERSID"):
      self.object(operation, argument)
    else:
      self.container(operation)

  def marked(self) -> list[Any]:
    """Removes and returns what is on the stack above the last mark, and the mark."""
    values = []
    while (value := self.stack.pop()) is not _MARK:
      values.append(value)
    return values[::-1]

  def container(self, operation: str) -> None:
    """Makes or fills a list, tuple or dictionary."""
    stack = self.stack
    if operation in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
      stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[operation])
    elif operation in ("TUPLE1", "TUPLE2", "TUPLE3"):
      values = [stack.pop() for _ in range(int(operation[-1]))]
      stack.append(tuple(values[::-1]))
    elif operation == "TUPLE":
      stack.append(tuple(self.marked()))
    elif operation == "LIST":
      stack.append(self.marked())
    elif operation == "DICT":
      stack.append(_fill({}, self.marked()))
    elif operation == "FROZENSET":
      self.marked()
      stack.append(_INERT)
    else:
      if operation in ("APPENDS", "SETITEMS", "ADDITEMS"):
        values = self.marked()
      else:
        values = [stack.pop() for _ in range({"APPEND": 1, "SETITEM": 2}[operation])][::-1]
      if operation.startswith("SETITEM") and isinstance(stack[-1], dict):
        _fill(stack[-1], values)
      elif operation.startswith("APPEND") and isinstance(stack[-1], list):
        stack[-1].extend(values)

  def object(self, operation: str, argument: Any) -> None:
    """Makes a name, a storage or a tensor; any other object is inert."""
    stack = self.stack
    if operation == "GLOBAL":
      self.name(argument.replace(" ", "."))
    elif operation == "STACK_GLOBAL":
      name, module = stack.pop(), stack.pop()
      self.name(f"{module}.{name}" if isinstance(name, str) and isinstance(module, str) else "?")
    elif operation == "INST":
      self.marked()
      self.name(argument.replace(" ", "."))
      stack[-1] = _INERT
    elif operation == "OBJ":
      self.marked()
      stack.append(_INERT)
    elif operation == "BUILD":
      # The state of an object; a dictionary keeps its items.
      stack.pop()
    elif operation == "BINPERSID":
      stack[-1] = _storage(stack[-1])
    else:
      arguments = [stack.pop() for _ in range(2 if operation == "NEWOBJ_EX" else 1)][-1]
      stack[-1] = _call(stack[-1], arguments) if operation == "REDUCE" else _INERT

  def name(self, name: str) -> None:
    """Puts a name on the stack; notes names that are not torch's."""
    own = name.startswith(("torch._utils._rebuild_", "torch.storage.")) or name in _TORCH_DTYPES or (
      name.startswith("torch.") and name.endswith("Storage"))
    if not own and name not in _HARMLESS:
      self.ignored.add(name[:200])
    self.stack.append(Named(name))


def _fill(mapping: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
  """Sets the items of a flat list of keys and values; drops keys that are no texts or numbers."""
  for key, value in zip(values[::2], values[1::2], strict=True):
    # The hash of nested tuples takes exponential time.
    if isinstance(key, (str, int)):
      mapping[key] = value
  return mapping


def _storage(reference: Any) -> Storage | Inert:
  """Returns the storage of a persistent id: ("storage", class, key, device, count)."""
  if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
    return _INERT
  _, kind, key, _, count = reference
  if not isinstance(kind, Named) or not isinstance(key, str) or not _is_size(count):
    return _INERT
  name = kind.name.rsplit(".", 1)[-1].removesuffix("Storage")
  # An untyped storage has bytes; its tensors bring the dtype.
  return Storage(key, DTYPES.get(name), count)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _call(function: Any, arguments: Any) -> Any:
  """Returns what one of torch's rebuilding functions would return; for any other function an inert mark."""
  name = function.name if isinstance(function, Named) else ""
  if not isinstance(arguments, tuple):
    return _INERT
  if name == "collections.OrderedDict":
    return {}
  if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
    return arguments[0] if arguments and isinstance(arguments[0], View) else _INERT
  if name == "torch._utils._rebuild_tensor_v2" and len(arguments) >= 4:
    return _view(*arguments[:4])
  if name == "torch._utils._rebuild_tensor_v3" and len(arguments) >= 7 and isinstance(arguments[6], Named):
    return _view(*arguments[:4], dtype=_TORCH_DTYPES.get(arguments[6].name))
  return _INERT


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> View | Inert:
  """Returns a tensor, or an inert mark where the description is none of a dense tensor."""
  dtype = dtype or (storage.dtype if isinstance(storage, Storage) else None)
  if dtype is None or not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
    return _INERT
  if len(shape) > _LARGEST_RANK or not all(map(_is_size, (offset, *shape, *strides))):
    return _INERT
  if math.prod(shape) > _LARGEST_SIZE:
    return _INERT
  return View(storage, np.dtype(dtype), offset, shape, strides)
