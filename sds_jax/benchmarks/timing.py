"""Clocks, and what has to be known of a machine to read them."""
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


def once(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
  """(result, seconds) of one call, waiting for all arrays of the result."""
  started = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return result, time.perf_counter() - started


def repeat(function: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
  """Seconds of `repeats` calls after one that is not counted (it compiles, and warms the caches)."""
  once(function, *args)
  return [once(function, *args)[1] for _ in range(repeats)]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
  """dict(median_s, min_s, mean_s, count, seconds) of raw times; the first three are None where there are none."""
  if not seconds:
    return dict(median_s=None, min_s=None, mean_s=None, count=0, seconds=[])
  return dict(median_s=statistics.median(seconds), min_s=min(seconds), mean_s=statistics.fmean(seconds),
              count=len(seconds), seconds=list(seconds))


def matmul_rate(size: int = 2048, repeats: int = 5, dtype: str = "float32") -> float:
  """FLOP/s that the best of `repeats` products of two [size, size] matrices of this dtype reaches."""
  a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
  product = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))
  return 2.0 * size**3 / min(repeat(product, a, b, repeats=repeats))


def peak_memory_bytes() -> int:
  """The most memory that this process has had so far (resident set)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_bytes() -> int | None:
  """The most memory that the first device has had in use so far; None where it does not say, as CPUs."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def cpu_count() -> int:
  """How many processors this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
  """The processor, how much of it is ours, the backend, and versions (None: not installed)."""
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
