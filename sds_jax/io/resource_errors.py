"""What has run out, in one line with a remedy: memory of the device or the machine, the disk, the right to write."""
from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
             errno.EFBIG: "a file may not grow further (ulimit -f)"}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_SAID = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "File too large": errno.EFBIG,
         "Read-only file system": errno.EROFS}
"""The system's words, for libraries that tell nothing else."""

_SMALLER_RENDERS = ("smaller config.training.views, config.render.height and width or config.render.num_samples, "
                    "config.render.block_points=65536, config.prior.vae_remat=True, config.prior.dtype=bfloat16")
_SMALLER = {
    "text3d": _SMALLER_RENDERS, "image3d": _SMALLER_RENDERS,
    "image2d": "smaller config.training.views, config.prior.vae_remat=True, config.prior.dtype=bfloat16"}
_SMALLER_OUTPUTS = "smaller config.export.image_size or config.export.mesh_resolution"


def explain(error: BaseException, folder: Path | None = None, mode: str = "train", job: str = "text3d") -> str | None:
  """What has run out, and what to do about it; None where `error`, and what led to it, are of another kind.

  Args:
    error: what has ended the command.
    folder: that of the run, where it is known.
    mode: what the command was doing, one of those of `run.py`.
    job: a key of `training.defaults.DEFAULTS`.
  """
  smaller = _SMALLER[job] if mode == "train" else _SMALLER_OUTPUTS
  for one in _chain(error):
    words = _first_line(one)
    if _is_device_memory(one):
      return f"the device has run out of memory ({words}); what needs less: {smaller}{_goes_on(folder, mode)}"
    if isinstance(one, MemoryError) or "std::bad_alloc" in words:
      return (f"this machine has run out of memory ({words}); close other programs, or take what needs less: "
              f"{smaller}{_goes_on(folder, mode)}")
    code = _code(one)
    if code in _NO_SPACE:
      return f"{_NO_SPACE[code]} ({words}); make room, or give another --workdir{_goes_on(folder, mode)}"
    if code == errno.EROFS or code in _REFUSED and _is_within(one, folder):
      return (f"the folder {folder or getattr(one, 'filename', None)} cannot be written to any more ({words}); make it "
              f"writable, or copy it to where it is{_goes_on(folder, mode)}")
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those that led to it, the last one first."""
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
  line = (str(error).strip().splitlines() or [""])[0]
  return line[:300] or type(error).__name__


def _is_device_memory(error: BaseException) -> bool:
  """At compiling, loading or running: CPU, GPU and TPU say RESOURCE_EXHAUSTED, parts of CUDA only the second."""
  return isinstance(error, jax.errors.JaxRuntimeError) and bool(
      re.search(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory", str(error)))


def _code(error: BaseException) -> int | None:
  """The system's number, told or read from the words of orbax and tensorstore."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  if isinstance(error, (OSError, ValueError, RuntimeError)):
    return next((code for words, code in _SAID.items() if words in str(error)), None)
  return None


def _is_within(error: BaseException, folder: Path | None) -> bool:
  """Whether the file that was refused is one of the run's own; others may well be there to be read only."""
  name = getattr(error, "filename", None)
  return folder is not None and isinstance(name, str) and Path(name).absolute().is_relative_to(folder.absolute())


def _goes_on(folder: Path | None, mode: str) -> str:
  """What the user has not lost."""
  if mode != "train" or folder is None:
    return ""
  try:
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
  except OSError:
    steps = []
  return f"; the same command then goes on from step {max(steps)}" if steps else ""
