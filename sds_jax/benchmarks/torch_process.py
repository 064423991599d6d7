"""The life of a process that computes with PyTorch for a benchmark in JAX. Imports torch (the extra `parity`)."""
from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def as_tensors(given: dict[str, Any], device: Any = "cpu") -> dict[str, Any]:
  """A dictionary with its arrays as tensors on the device."""
  return {name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
          for name, value in given.items()}


def serve(connection: Any, payload: dict[str, Any], threads: int, make: Callable[[dict[str, Any]], Any],
          answers: dict[str, Callable[[Any, Any], Any]]) -> None:
  """Makes a thing of the payload and answers requests (name, argument) by `answers[name](thing, argument)`.

  It ends at ("stop", None); the last answer is the most memory that the process has had, in bytes.
  """
  torch.set_num_threads(threads)
  thing = make(payload)
  while (request := connection.recv())[0] != "stop":
    connection.send(answers[request[0]](thing, request[1]))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  connection.send(peak if sys.platform == "darwin" else 1024 * peak)
