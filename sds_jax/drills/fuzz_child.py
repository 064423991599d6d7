"""One process of the fuzz drill: the command, in a world of its own. Whoever forks has this module imported already."""
from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import huggingface_hub  # noqa: F401, with what follows: not to be imported again by each child
import jax
from huggingface_hub import constants  # noqa: F401

from sds_jax import cli
from sds_jax.evaluation import image2d_modes, modes  # noqa: F401
from sds_jax.io import tensorboard  # noqa: F401


def run(words: list[str], root: Path, compiled: Path) -> None:
  """The command with these arguments; ends by SystemExit, or by what the command has not caught.

  Args:
    words: what stands behind the program's name.
    root: a folder with here/ (to be the current one), home/, cache/ and tmp/; gets stdout and stderr.
    compiled: cache of XLA, which children share since they come one by one.
  """
  os.chdir(root / "here")
  os.environ.update(HOME=str(root / "home"), XDG_CACHE_HOME=str(root / "cache"), TMPDIR=str(root / "tmp"),
                    SDS_JAX_CACHE=str(root / "cache"))
  os.environ.pop("SDS_JAX_TRACEBACK", None)
  tempfile.tempdir = None
  for number, name in ((1, "stdout"), (2, "stderr")):
    handle = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, number)
    os.close(handle)
  sys.stdout.reconfigure(encoding="utf-8", errors="strict")
  sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  sys.argv = ["run.py", *words]
  cli.main()
