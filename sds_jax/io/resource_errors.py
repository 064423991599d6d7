"""Explains exhausted memory, full disks and missing permissions in one line with a remedy."""
from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
             errno.EFBIG: "a file may not grow further (ulimit -f)"}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_MESSAGES = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT,
             "File too large": errno.EFBIG, "Read-only file system": errno.EROFS}
"""Messages of the operating system, for libraries that pass on no error number."""

_SMALLER_RENDERS = ("smaller config.training.views, config.render.height and width or config.render.num_samples, "
                    "config.render.block_points=65536, config.prior.vae_remat=True, config.prior.dtype=bfloat16")
_SMALLER = {
    "text3d": _SMALLER_RENDERS, "image3d": _SMALLER_RENDERS,
    "image2d": "smaller config.training.views, config.prior.vae_remat=True, config.prior.dtype=bfloat16"}
_SMALLER_OUTPUTS = "smaller config.export.image_size or config.export.mesh_resolution"


def explain(error: BaseException, folder: Path | None = None, mode: str = "train", job: str = "text3d") -> str | None:
  """Explains an exhausted resource and the remedy.

  Returns None for other errors.

  Args:
    error: the error that ended the command; causes and contexts are searched, too.
    folder: the run's folder, if known.
    mode: mode of the command, as in `run.py`.
    job: value of the setting `job`, a key of `settings.TREES`.
  """
  smaller = _SMALLER[job] if mode == "train" else _SMALLER_OUTPUTS
  for link in _chain(error):
    message = _first_line(link)
    if _is_device_memory(link):
      return f"the device has run out of memory ({message}); to save memory: {smaller}{_progress(folder, mode)}"
    # C++ libraries name exhausted memory std::bad_alloc, within exceptions of other types.
    if isinstance(link, MemoryError) or "std::bad_alloc" in message:
      return (f"this machine has run out of memory ({message}); close other programs, or save memory: "
              f"{smaller}{_progress(folder, mode)}")
    code = _code(link)
    if code in _NO_SPACE:
      return f"{_NO_SPACE[code]} ({message}); make room, or give another --workdir{_progress(folder, mode)}"
    # A refusal outside the run's folder is another problem: other files may be read-only on purpose.
    if code == errno.EROFS or code in _REFUSED and _is_within(link, folder):
      return (f"the folder {folder or getattr(link, 'filename', None)} cannot be written to any more ({message}); make "
              f"the folder writable, or copy the folder to a writable place{_progress(folder, mode)}")
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and the errors behind it.

  The last error comes first.
  """
  visited: set[int] = set()  # chains can be circular
  while error is not None and id(error) not in visited:
    visited.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
  line = (str(error).strip().splitlines() or [""])[0]
  return line[:300] or type(error).__name__


def _is_device_memory(error: BaseException) -> bool:
  """Returns whether JAX ran out of device memory while compiling, loading or running."""
  # CPU, GPU and TPU report RESOURCE_EXHAUSTED; parts of CUDA report only OUT_OF_MEMORY.
  return isinstance(error, jax.errors.JaxRuntimeError) and bool(
      re.search(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory", str(error)))


def _code(error: BaseException) -> int | None:
  """Returns the error number, given or parsed.

  Messages of orbax and tensorstore are parsed.
  """
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  if isinstance(error, (OSError, ValueError, RuntimeError)):
    return next((code for text, code in _MESSAGES.items() if text in str(error)), None)
  return None


def _is_within(error: BaseException, folder: Path | None) -> bool:
  """Returns whether the refused file lies in the run's folder."""
  name = getattr(error, "filename", None)
  return folder is not None and isinstance(name, str) and Path(name).absolute().is_relative_to(folder.absolute())


def _progress(folder: Path | None, mode: str) -> str:
  """Returns a sentence with the step to resume from; '' without checkpoints."""
  if mode != "train" or folder is None:
    return ""
  try:
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
  except OSError:
    steps = []
  return f"; the same command then goes on from step {max(steps)}" if steps else ""
