"""A process of the fuzz drill: the command in an isolated environment, forked after the imports of the module."""
from __future__ import annotations

import os
import resource
import sys
import tempfile
from pathlib import Path

# Imported here although unused, so that children need not import these modules again.
import huggingface_hub  # noqa: F401
import jax
from huggingface_hub import constants  # noqa: F401

from sds_jax import tasks  # noqa: F401
from sds_jax.commands import errors, evaluate, export, main as command, train  # noqa: F401 (errors, evaluate, export)
from sds_jax.evaluation import image_scores, scores
from sds_jax.io import tensorboard  # noqa: F401


MOST_MEMORY = 6 * 2**30
"""Bytes of memory that a try may ask for; a tiny run takes half a gigabyte."""


ACCEPTED = "accepted"
"""Name of the file in the folder of a try that tells of a run that was ended where its training or scoring begins."""


def run(arguments: list[str], root: Path, compiled: Path, whole: bool = True) -> None:
  """Runs the command; ends by SystemExit or another exception.

  Args:
    arguments: the command line without the program.
    root: a folder with here/ (the working directory), home/, cache/ and tmp/; receives stdout and stderr.
    compiled: compilation cache of XLA, shared by children because children run in sequence.
    whole: whether a run that is accepted trains, or is scored; otherwise the run ends there, which saves most of the
      time.
  """
  def end(*_: object) -> None:
    (root / ACCEPTED).touch()
    sys.exit(0)

  if not whole:
    # All checks lie before these functions: settings, files, folder, prior and prompts; a checkpoint for the scores.
    train.train = scores.score = image_scores.score = end
  # A command line that asks for all memory must not end the drill or the machine.
  resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
  os.chdir(root / "here")
  os.environ.update(HOME=str(root / "home"), XDG_CACHE_HOME=str(root / "cache"), TMPDIR=str(root / "tmp"),
                    SDS_JAX_CACHE=str(root / "cache"))
  os.environ.pop("SDS_JAX_TRACEBACK", None)
  tempfile.tempdir = None  # the parent may have cached its own folder; None reads TMPDIR again
  # Redirected at the level of file descriptors, so output of XLA and of C libraries is captured too.
  for number, name in ((1, "stdout"), (2, "stderr")):
    handle = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, number)
    os.close(handle)
  sys.stdout.reconfigure(encoding="utf-8", errors="strict")
  sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
  # A shared cache: most tries compile the same step.
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  sys.argv = ["run.py", *arguments]
  command.main()
