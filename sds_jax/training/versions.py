"""The versions that a run was made with."""
from __future__ import annotations

import importlib.metadata
import platform

import jax

import sds_jax


def versions() -> dict[str, str]:
  """Returns the versions of the libraries and the kind of the device.

  config.json and the report show these versions.
  """
  installed = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
  return dict(sds_jax=sds_jax.__version__, python=platform.python_version(), **installed,
              device=jax.devices()[0].device_kind)
