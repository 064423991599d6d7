"""How a step scales over devices: what is sent is counted, its cost on real links predicted, virtual devices measured.

    python -m sds_jax.benchmarks.scaling --json=scaling.json

Counted: the shipped prior's step, compiled for 8 virtual devices. What it sends is one all-reduce of the field's
gradient and a few metrics, so for other settings the number of the field's parameters tells. Predicted: efficiency =
t / (t + all-reduce) with t the time of a step on one device, its matrix products and convolutions at MFU of the chip's
peak; nothing is assumed to overlap. Measured: on the same cores as 1, 2, 4 and 8 virtual devices the same 16 views
(strong scaling), and two views a device (weak scaling). The cores don't become more, so a step of n devices should take
as long as n of one; what is more than 1 is the price of taking the batch apart.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sds_jax.benchmarks import flops, timing, workload
from sds_jax.benchmarks.collectives import collectives
from sds_jax.benchmarks.runs import Run
from sds_jax.io import files
from sds_jax.priors import prior as prior_lib, published
from sds_jax.training import config as config_lib, jobs, layout as layout_lib, step as step_lib, validation

MFU = 0.4
"""Share of a chip's peak that a step's networks are assumed to reach."""


class Slice(NamedTuple):
  """Chips and their links: peak bf16 FLOP/s of a chip, bytes/s one way between neighbours in a ring, seconds a hop."""
  name: str
  chips: int
  peak: float
  link: float
  hop: float


FILLED = 0.375
"""Share of the sample budget that is assumed to be used."""

SLICES = (Slice("8 H100, NVLink", 8, 989e12, 450e9, 3e-6), Slice("TPU v5e-16", 16, 197e12, 90e9, 1e-6),
          Slice("TPU v5e-64", 64, 197e12, 90e9, 1e-6), Slice("TPU v5e-256", 256, 197e12, 90e9, 1e-6))
"""NVLink 4: 900 GB/s both ways; v5e: four links of 45 GB/s one way, of which a ring through the torus uses two."""

WORKLOADS = {"shapeworld": 2, "sd15": 1}
"""Prior (with its own settings of configs/text.py) -> views a device."""


def all_reduce_seconds(size: float, place: Slice) -> float:
  """Of `size` bytes by a ring: each chip sends 2 (n - 1) / n of them, in 2 (n - 1) hops."""
  n = place.chips
  return 2 * (n - 1) / n * size / place.link + 2 * (n - 1) * place.hop


def efficiency(size: float, products: float, place: Slice) -> float:
  """t / (t + all-reduce) for a step of so many FLOPs on a chip."""
  step = products / (MFU * place.peak)
  return step / (step + all_reduce_seconds(size, place))


def counted(prior: str, views: int) -> tuple[int, float]:
  """(bytes of the gradient, FLOPs of the products of a step) of a prior's own settings; nothing is computed."""
  config = workload.default_config(prior)
  config.update_from_flattened_dict({"training.views": views, "parallel.devices": 1, "prior.name": prior,
                                     "prior.random_weights": prior in published.PRIORS})
  work = workload.build(validation.validate(config), allocate=False)
  state = jax.eval_shape(lambda: workload.first_state(work))
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
  step = step_lib.make_step(work.scene, work.prior)
  return size, flops.count(step, state, *work.fixed, branch=flops.filled(FILLED))


def predicted() -> list[dict[str, Any]]:
  """A row for each of WORKLOADS."""
  rows = []
  for name, views in WORKLOADS.items():
    size, products = counted(name, views)
    rows.append(dict(workload=name, views_per_device=views, gradient_bytes=size, flops=products,
                     efficiency={place.name: efficiency(size, products, place) for place in SLICES}))
  return rows


def _split(devices: int, views: int, prior: prior_lib.Prior, params: Any) -> Run:
  """The default step with so many views on so many devices."""
  config = config_lib.default()
  config.update_from_flattened_dict({"training.views": views, "parallel.devices": devices})
  config = validation.validate(config)
  return Run(jobs.text3d(config, prior), layout_lib.make_layout(config), params)


def measured(views: int = 16, each: int = 2, rounds: int = 5, steps: int = 4,
             devices: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
  """Seconds of a step on so many virtual devices, timed in turns.

  Returns:
    dict(views, each, sent, rows, weak): `sent` the collectives of the most devices; rows of dict(devices, step_s,
    ratio) with `views` in all, ratio to one device; and `weak`, the same with `each` views a device, ratio to as many
    steps of one device, which is 1 where taking a batch apart costs nothing.
  """
  prior, params = prior_lib.build("shapeworld")
  runs = {(count, all_views): _split(count, all_views, prior, params)
          for count in devices for all_views in sorted({views, each * count})}
  seconds: dict[tuple[int, int], list[float]] = {key: [] for key in runs}
  for run in runs.values():
    run.run(40)  # past the full occupancy grid
  for _ in range(rounds):
    for key, run in runs.items():
      seconds[key].append(run.run(steps) / steps)
  step_s = {key: float(np.median(values)) for key, values in seconds.items()}
  sent = [entry._asdict() for entry in collectives(runs[max(devices), views].step.as_text())]
  first = min(devices)

  def rows(views_of: Callable[[int], int], growth: Callable[[int], float]) -> list[dict[str, Any]]:
    base = step_s[first, views_of(first)]
    return [dict(devices=n, step_s=step_s[n, views_of(n)], ratio=step_s[n, views_of(n)] / (growth(n) * base))
            for n in devices]

  return dict(views=views, each=each, sent=sent, rows=rows(lambda n: views, lambda n: 1.0),
              weak=rows(lambda n: each * n, lambda n: n / first))


def table(record: dict[str, Any]) -> str:
  """The two tables of a record, predicted and measured, as Markdown."""
  names = list(record["predicted"][0]["efficiency"])
  lines = ["| prior, views a device | sent, kB | GFLOP a device | " + " | ".join(names) + " |",
           "|---" * (3 + len(names)) + "|"]
  for row in record["predicted"]:
    cells = [f"{row['workload']}, {row['views_per_device']}", f"{row['gradient_bytes'] / 1e3:,.0f}",
             f"{row['flops'] / 1e9:,.1f}", *(f"{row['efficiency'][name]:.1%}" for name in names)]
    lines.append(f"| {' | '.join(cells)} |")
  views = record["measured"]["views"]
  lines += ["", f"| virtual devices, {views} views | ms a step | times one device |", "|---|---|---|"]
  for row in record["measured"]["rows"]:
    lines.append(f"| {row['devices']} | {1e3 * row['step_s']:.0f} | {row['ratio']:.2f} |")
  each = record["measured"]["each"]
  lines += ["", f"| virtual devices, {each} views each | ms a step | times as many steps of one device |",
            "|---|---|---|"]
  for row in record["measured"]["weak"]:
    lines.append(f"| {row['devices']} | {1e3 * row['step_s']:.0f} | {row['ratio']:.2f} |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.scaling", description="How a step scales.")
  parser.add_argument("--json", type=Path, help="where to write all numbers")
  parser.add_argument("--rounds", type=int, default=5, help="turns of each number of devices (default: %(default)s)")
  args = parser.parse_args(argv)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  record = dict(predicted=predicted(), measured=measured(rounds=args.rounds), machine=timing.machine(), mfu=MFU,
                slices=[place._asdict() for place in SLICES])
  print("sent in a step, for 8 devices: " + ", ".join(f"{entry['kind']} of {entry['bytes'] / 1e3:.1f} kB"
                                                     for entry in record["measured"]["sent"]))
  print(table(record))
  if args.json:
    files.write_json(record, args.json)


if __name__ == "__main__":
  main()
