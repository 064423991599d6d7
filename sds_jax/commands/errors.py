"""The errors that a user can correct, each as one line."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sds_jax.hosts import HostError
from sds_jax.io import resource_errors
from sds_jax.io.files import DamagedFileError
from sds_jax.io.lock import LockedError
from sds_jax.io.run_files import FileInTheWayError
from sds_jax.priors.loading.decoding import PictureError
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.schema import ConfigError
from sds_jax.training.workspace import ResumeError, WorkdirError

USER_ERRORS = (ConfigError, WorkdirError, CheckpointError, ResumeError, DamagedFileError, LockedError, HostError,
               PictureError, FileInTheWayError)


def explain(error: Exception, folder: Path | None, mode: str, job: str) -> str | None:
  """Returns a line with the error and its remedy.

  For a fault of the library the result is None.

  Args:
    error: the exception that ended the command.
    folder: of the run, if known.
    mode: of the command.
    job: value of the setting `job`.
  """
  return str(error) if isinstance(error, USER_ERRORS) else resource_errors.explain(error, folder, mode, job)


def without_orphaned_writes(hook: Callable[[Any], None]) -> Callable[[Any], None]:
  """Returns a `sys.unraisablehook` that ignores the remaining writes of a failed checkpoint.

  After one failed write orbax closes its event loop, and the writes still under way then report the closed loop.
  """
  def quiet(unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
      hook(unraisable)

  return quiet
