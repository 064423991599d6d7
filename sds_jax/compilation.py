"""How programs are compiled and run: XLA's persistent cache, options that suit a U-Net on CPUs, memory kept."""
from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib


def cache_folder() -> Path:
  """`$XDG_CACHE_HOME/sds_jax/...`, its name made of jaxlib's version, the backend and the processor.

  An executable from another jaxlib or another kind of processor would be rejected, or worse, run.
  """
  base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
  except OSError:
    processor = platform.processor()
  digest = hashlib.sha256((processor + platform.machine()).encode()).hexdigest()[:10]
  return base / "sds_jax" / f"xla-{jaxlib.__version__}-{jax.default_backend()}-{digest}"


def prepare() -> None:
  """What the commands do before they compile (the benchmark has a cache of its own): `use_cache`, `keep_memory`."""
  use_cache()
  keep_memory()


def use_cache() -> None:
  """Turn the cache on, unless the user has set JAX_COMPILATION_CACHE_DIR or its folder cannot be made."""
  if jax.config.jax_compilation_cache_dir:
    return
  try:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # the latter where nobody knows of a home
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_memory() -> None:
  """On CPUs: what one step frees stays in the process for the next one (`disable_malloc_trim`)."""
  if jax.default_backend() == "cpu":
    disable_malloc_trim()


def disable_malloc_trim() -> None:
  """Tells glibc not to give freed memory back to the kernel; without effect on other C libraries.

  By default large buffers go back at once and are faulted in again, page by page: in 150 default steps 1.4 million page
  faults instead of 0.3 million, and on two cores 98 ms a step instead of 51 (the best of each).
  """
  if platform.libc_ver()[0] != "glibc":
    return
  mallopt = ctypes.CDLL(None).mallopt
  for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    mallopt(option, value)


def unet_options() -> dict[str, str] | None:
  """Options for `jax.jit(..., compiler_options=...)` of a program that runs a U-Net; None where there are none.

  On CPUs XLA hands convolutions to YNNPACK; on maps as small as a U-Net's Eigen is faster: on two cores four images
  through the shipped U-Net took 31 ms instead of 46, the default step 160 ms instead of 192. An XLA that does not know
  the option is left alone.
  """
  if jax.default_backend() != "cpu":
    return None
  options = {"xla_cpu_experimental_ynn_fusion_type": ""}
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except (RuntimeError, ValueError):
    return None
  return options
