"""The loop of a process that computes with PyTorch for a benchmark.

Imports torch (the extra `sds_jax[parity]`).
"""
from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def as_tensors(inputs: dict[str, Any], device: Any = "cpu") -> dict[str, Any]:
  """Returns a dictionary whose arrays are replaced by tensors on the device."""
  return {name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
          for name, value in inputs.items()}


def serve(connection: Any, payload: dict[str, Any], threads: int, make: Callable[[dict[str, Any]], Any],
          answers: dict[str, Callable[[Any, Any], Any]]) -> None:
  """Answers requests (name, argument) by `answers[name](make(payload), argument)`.

  The request ("stop", None) ends the loop. Its answer is the largest resident set of the process in bytes.

  Args:
    connection: a pipe to the benchmark.
    payload: argument of `make`.
    threads: number of PyTorch's threads.
    make: builds the object that all requests share.
    answers: {name of a request: function (object, argument) -> answer}.
  """
  # As many threads as XLA has, for a fair comparison.
  torch.set_num_threads(threads)
  shared = make(payload)
  while (request := connection.recv())[0] != "stop":
    connection.send(answers[request[0]](shared, request[1]))
  # Kilobytes on Linux, bytes on macOS.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  connection.send(peak if sys.platform == "darwin" else 1024 * peak)
