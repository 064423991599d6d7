"""How a step scales over devices: counted traffic, predicted cost on real links, measured cost on virtual devices.

    python -m sds_jax.benchmarks.scaling --json=scaling.json

Counted: the collectives of the shipped prior's step, compiled for 8 virtual devices. A step sends one all-reduce of the
field's gradient and a few metrics, so for other settings the number of the field's parameters gives the traffic.
Predicted: efficiency = t / (t + all-reduce), with t the time of a step on one device, whose matrix products and
convolutions run at MFU of the chip's peak; no overlap is assumed. Measured: the same cores as 1, 2, 4 and 8 virtual
devices, with the same 16 views (strong scaling) and with two views a device (weak scaling). The number of cores stays
the same, so a step of n devices should take as long as n steps of one device; the excess over 1 is the cost of
splitting the batch.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sds_jax import settings as settings_lib, terminal
from sds_jax.benchmarks import flops, timing, workload
from sds_jax.benchmarks.collectives import collectives
from sds_jax.benchmarks.timed_program import TimedProgram
from sds_jax.io import files
from sds_jax.priors import prior as prior_lib, published
from sds_jax.priors.prior import Prior
from sds_jax.tasks import Text3DTask
from sds_jax.training.layout import make_layout
from sds_jax.types import Params

MFU = 0.4
"""Assumed share of a chip's peak at which a step's networks run."""

FILLED = 0.375
"""Assumed share of the sample budget in use."""


class Slice(NamedTuple):
  """Chips and their links.

  Attributes:
    name: in tables.
    chips: how many.
    peak: bf16 FLOP/s of a chip.
    link: bytes/s one way between neighbours in a ring.
    hop: seconds of one hop.
  """
  name: str
  chips: int
  peak: float
  link: float
  hop: float


# NVLink 4: 900 GB/s both ways. TPU v5e: four links of 45 GB/s one way; a ring through the torus uses two links.
SLICES = (Slice("8 H100, NVLink", 8, 989e12, 450e9, 3e-6), Slice("TPU v5e-16", 16, 197e12, 90e9, 1e-6),
          Slice("TPU v5e-64", 64, 197e12, 90e9, 1e-6), Slice("TPU v5e-256", 256, 197e12, 90e9, 1e-6))

WORKLOADS = {"shapeworld": 2, "sd15": 1}
"""Prior, with the settings of configs/text.py -> views a device."""


def all_reduce_seconds(size: float, place: Slice) -> float:
  """Returns the seconds of an all-reduce of `size` bytes by a ring.

  Each of n chips sends 2 (n - 1) / n of the bytes, in 2 (n - 1) hops.
  """
  n = place.chips
  return 2 * (n - 1) / n * size / place.link + 2 * (n - 1) * place.hop


def efficiency(size: float, products: float, place: Slice) -> float:
  """Returns the efficiency t / (t + all-reduce) of a step.

  The step has `products` FLOPs on a chip and `size` bytes of gradient.
  """
  step = products / (MFU * place.peak)
  return step / (step + all_reduce_seconds(size, place))


def count_step(prior: str, views: int) -> tuple[int, float]:
  """Counts the bytes of the gradient and the FLOPs of a step.

  The settings are those for the prior. Nothing is computed.
  """
  config = workload.default_config(prior)
  config.update_from_flattened_dict({"training.views": views, "parallel.devices": 1, "prior.name": prior,
                                     "prior.random_weights": prior in published.PRIORS})
  # Without weights: shapes suffice to count.
  work = workload.build(Text3DTask(settings_lib.validate(config)), allocate=False)
  state = jax.eval_shape(lambda: workload.first_state(work))
  # 4 bytes: parameters and gradients are float32, whatever the dtype of the prior.
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
  return size, flops.count(workload.make_step(work), state, *work.fixed, branch=flops.filled(FILLED))


def predict() -> list[dict[str, Any]]:
  """Returns a row for each of WORKLOADS."""
  rows = []
  for name, views in WORKLOADS.items():
    size, products = count_step(name, views)
    rows.append(dict(workload=name, views_per_device=views, gradient_bytes=size, flops=products,
                     efficiency={place.name: efficiency(size, products, place) for place in SLICES}))
  return rows


def _default_program(devices: int, views: int, prior: Prior, prior_params: Params) -> TimedProgram:
  """Returns the default step with this many views on this many devices."""
  config = settings_lib.defaults()
  config.update_from_flattened_dict({"training.views": views, "parallel.devices": devices})
  settings = settings_lib.validate(config)
  layout = make_layout(settings.parallel, settings.training.views)
  return TimedProgram(Text3DTask(settings).program(prior), layout, prior_params)


def measure(views: int = 16, each: int = 2, rounds: int = 5, steps: int = 4,
            devices: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
  """Times a step on several numbers of virtual devices, in turns.

  Args:
    views: of a step, for strong scaling.
    each: views a device, for weak scaling.
    rounds: number of turns of each program.
    steps: of a turn.
    devices: the numbers of virtual devices.

  Returns:
    dict(views, each, sent, rows, weak): `sent` the collectives with the most devices; `rows` of dict(devices, step_s,
    ratio) with `views` in all, ratio to one device; `weak` the same with `each` views a device, ratio to as many steps
    of one device. A ratio of 1 means that splitting the batch costs nothing.
  """
  prior, prior_params = prior_lib.build("shapeworld")
  programs = {(count, all_views): _default_program(count, all_views, prior, prior_params)
              for count in devices for all_views in sorted({views, each * count})}
  seconds: dict[tuple[int, int], list[float]] = {key: [] for key in programs}
  for program in programs.values():
    program.run(40)  # until the occupancy grid is no longer full
  # In turns: on a shared machine only times measured side by side can be compared.
  for _ in range(rounds):
    for key, program in programs.items():
      seconds[key].append(program.run(steps) / steps)
  step_s = {key: float(np.median(values)) for key, values in seconds.items()}
  sent = [entry._asdict() for entry in collectives(programs[max(devices), views].step.as_text())]
  first = min(devices)

  def rows(views_of: Callable[[int], int], growth: Callable[[int], float]) -> list[dict[str, Any]]:
    # All devices are the same cores, so n times the views should take n times as long.
    base = step_s[first, views_of(first)]
    return [dict(devices=n, step_s=step_s[n, views_of(n)], ratio=step_s[n, views_of(n)] / (growth(n) * base))
            for n in devices]

  return dict(views=views, each=each, sent=sent, rows=rows(lambda n: views, lambda n: 1.0),
              weak=rows(lambda n: each * n, lambda n: n / first))


def table(record: dict[str, Any]) -> str:
  """Returns the two tables of a record, predicted and measured, as Markdown."""
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
  """Runs the command."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.scaling", description="How a step scales.")
  parser.add_argument("--json", type=terminal.user_path, help="file for all numbers")
  parser.add_argument("--rounds", type=int, default=5, help="turns of each number of devices (default: %(default)s)")
  args = parser.parse_args(argv)
  # Before the first use of a backend, which fixes the platform and the number of devices.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  record = dict(predicted=predict(), measured=measure(rounds=args.rounds), machine=timing.machine(), mfu=MFU,
                slices=[place._asdict() for place in SLICES])
  print("sent in a step, for 8 devices: " + ", ".join(f"{entry['kind']} of {entry['bytes'] / 1e3:.1f} kB"
                                                     for entry in record["measured"]["sent"]))
  print(table(record))
  if args.json:
    files.write_json(record, args.json)


if __name__ == "__main__":
  main()
