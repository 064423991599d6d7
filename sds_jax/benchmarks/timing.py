"""Clocks, and a description of the machine."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = ("sds_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")
"""Packages whose versions a record names."""


def once(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
  """Calls a function and waits; returns (result, seconds).

  Waits for all arrays of the result.
  """
  started = time.perf_counter()
  # JAX dispatches and returns at once; without the wait only the dispatch would be timed.
  result = jax.block_until_ready(function(*args))
  return result, time.perf_counter() - started


def repeat(function: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
  """Returns the seconds of `repeats` calls.

  A first call, which compiles and warms the caches, is not counted.
  """
  once(function, *args)
  return [once(function, *args)[1] for _ in range(repeats)]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
  """Summarises raw times as dict(median_s, min_s, mean_s, count, seconds).

  Without times the first three are None.
  """
  if not seconds:
    return dict(median_s=None, min_s=None, mean_s=None, count=0, seconds=[])
  return dict(median_s=statistics.median(seconds), min_s=min(seconds), mean_s=statistics.fmean(seconds),
              count=len(seconds), seconds=list(seconds))


def matmul_rate(size: int = 2048, repeats: int = 5, dtype: str = "float32") -> float:
  """Returns the FLOP/s of a product of two [size, size] matrices.

  The fastest of `repeats` products counts.
  """
  a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
  # HIGHEST: the default precision of float32 products is lower on accelerators.
  product = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))
  # The fastest call, since other work on the machine only adds time.
  return 2.0 * size**3 / min(repeat(product, a, b, repeats=repeats))


def peak_memory_bytes() -> int:
  """Returns the largest resident set of this process so far."""
  # Kilobytes on Linux, bytes on macOS.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_bytes() -> int | None:
  """Returns the largest memory in use on the first device so far.

  The result is None on CPUs, which do not report their memory.
  """
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def cpu_count() -> int:
  """Returns the number of processors that this process may use."""
  # Affinity and not the machine's count: containers often allow a part of the processors.
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
  """Returns the processor, the number of CPUs, the backend and versions.

  The CPUs are those for this process. A version is None where a package is not installed.
  """
  device = jax.devices()[0]
  return dict(processor=_processor(), cpus=cpu_count(), system=f"{platform.system()} {platform.machine()}",
              backend=device.platform, device=device.device_kind, python=platform.python_version(),
              versions={name: _version(name) for name in PACKAGES})


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    return platform.processor()
  return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
