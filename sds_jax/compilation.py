"""How programs are compiled and run: XLA's persistent cache, compiler options for U-Nets on CPUs, freed memory."""
from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib


def cache_folder() -> Path:
  """Returns `$XDG_CACHE_HOME/sds_jax/xla-<jaxlib version>-<backend>-<digest of the processor>`."""
  # An executable from another jaxlib or another kind of processor would be rejected, or worse, run.
  base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
  except OSError:
    processor = platform.processor()
  digest = hashlib.sha256((processor + platform.machine()).encode()).hexdigest()[:10]
  return base / "sds_jax" / f"xla-{jaxlib.__version__}-{jax.default_backend()}-{digest}"


def prepare() -> None:
  """Calls `use_cache` and `keep_memory`.

  Every command does so before compiling.

  The benchmark skips `use_cache`, because the benchmark has a cache folder of its own.
  """
  use_cache()
  keep_memory()


def use_cache() -> None:
  """Turns on XLA's persistent cache.

  Does nothing when the user has set JAX_COMPILATION_CACHE_DIR or the cache folder cannot be made.
  """
  if jax.config.jax_compilation_cache_dir:
    return
  try:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # Path.home raises RuntimeError where the user has no home folder
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_memory() -> None:
  """Keeps freed memory in the process, on CPUs only."""
  if jax.default_backend() == "cpu":
    disable_malloc_trim()


def disable_malloc_trim() -> None:
  """Tells glibc to keep freed memory.

  Has no effect on other C libraries. By default glibc returns large buffers to the kernel at once, and every reuse
  faults the pages in again: 150 default steps cause 1.4 million page faults instead of 0.3 million, and a step takes 98
  ms instead of 51 ms on two cores (the best of each).
  """
  if platform.libc_ver()[0] != "glibc":
    return
  mallopt = ctypes.CDLL(None).mallopt
  for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    mallopt(option, value)


def unet_options() -> dict[str, str] | None:
  """Returns compiler options for programs with a U-Net.

  The options are for `jax.jit(..., compiler_options=...)`. On CPUs XLA hands convolutions to YNNPACK by default. Eigen
  is faster on maps as small as those of a U-Net: on two cores four images through the shipped U-Net took 31 ms instead
  of 46 ms, and the default step 160 ms instead of 192 ms. Returns None on other backends and for an XLA without the
  option.
  """
  if jax.default_backend() != "cpu":
    return None
  options = {"xla_cpu_experimental_ynn_fusion_type": ""}
  # XLA checks option names only when compiling, so compile an empty program.
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except (RuntimeError, ValueError):
    return None
  return options
