"""Counts the parameters of the networks of every prior with a name; no weight is read or made.

    python -m sds_jax.benchmarks.sizes --json=sds_jax/benchmarks/records/prior-sizes.json
"""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors

from sds_jax.io import files
from sds_jax.priors import published, sources
from sds_jax.priors.base import Config
from sds_jax.priors.loading.checkpoint import COMPONENTS, abstract_params


def of_configs(configs: Mapping[str, Config]) -> dict[str, int]:
  """Returns the number of parameters of each network.

  `configs` holds the content of each config.json.
  """
  counts = {}
  for name, config in configs.items():
    if name in COMPONENTS:
      shapes = abstract_params(COMPONENTS[name].network.from_config(config))
      counts[name] = sum(math.prod(leaf.shape) for leaf in shapes.values())
  return counts


def of_folder(folder: Path) -> dict[str, int]:
  """Returns the number of parameters in each folder of a prior.

  The headers of the safetensors files are read.
  """
  counts = {}
  for path in sorted(folder.glob("*/*.safetensors")):
    with safetensors.safe_open(path, "numpy") as stored:
      # `get_slice` reads shapes from the header and no tensor.
      count = sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())
    counts[path.parent.name] = counts.get(path.parent.name, 0) + count
  return counts


def measure() -> dict[str, Any]:
  """Returns {name of a prior: {network: number of parameters}}.

  The priors are the shipped and the published ones.
  """
  counted: dict[str, dict[str, int]] = {}  # several names share their networks
  priors = {name: of_folder(sources.shipped_folder(name)) for name in sources.SHIPPED}
  for name, configs in published.PRIORS.items():
    # Configs hold lists and cannot be keys of a dictionary; their JSON can.
    key = json.dumps(configs, sort_keys=True, default=str)
    if key not in counted:
      counted[key] = of_configs(configs)
    priors[name] = counted[key]
  return dict(command="python -m sds_jax.benchmarks.sizes", priors=priors)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.sizes", description=__doc__.splitlines()[0])
  parser.add_argument("--json", type=Path, help="file for all numbers")
  args = parser.parse_args(argv)
  record = measure()
  for name, networks in record["priors"].items():
    print(name, *(f"{network} {count / 1e6:.1f} M" for network, count in networks.items()), sep="  ")
  if args.json:
    files.write_json(record, args.json)


if __name__ == "__main__":
  main()
