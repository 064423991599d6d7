"""Many prompts at once against one after the other: steps a second of all scenes together, and whether they are equal.

    python -m sds_jax.benchmarks.scenes --prompts=16 --steps=20 --json=scenes.json

The step of one scene (as 16 runs have it) and that of all scenes, made one by one or all together under `vmap`, are
compiled once each and timed in turns; the default settings and prior.
"""
from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sds_jax import compilation
from sds_jax.benchmarks import timing
from sds_jax.benchmarks.runs import Run
from sds_jax.io import files
from sds_jax.priors import prior as prior_lib
from sds_jax.shapeworld import solids
from sds_jax.training import config as config_lib, jobs, layout as layout_lib, scenes as scenes_lib, validation


class _Separate:
  """Runs of one prompt each, all by the executable of the first."""

  def __init__(self, prompts: Sequence[str], prior: prior_lib.Prior, params: Any):
    self._runs, step = [], None
    for prompt in prompts:
      config = config_lib.default()
      config.update_from_flattened_dict({"prompt": prompt, "parallel.devices": 1})
      config = validation.validate(config)
      self._runs.append(Run(jobs.text3d(config, prior), layout_lib.make_layout(config), params, step=step))
      step = self._runs[0].step

  def run(self, steps: int) -> float:
    """Seconds of so many steps of every prompt."""
    return sum(run.run(steps) for run in self._runs)

  def params(self) -> Any:
    """[N, ...] of all prompts."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[run.params() for run in self._runs])


def _together(prompts: Sequence[str], prior: prior_lib.Prior, params: Any, together: int) -> Run:
  """The same as the scenes of one run, `together` at a time."""
  config = config_lib.default()
  config.update_from_flattened_dict({"parallel.devices": 1, "parallel.together": together})
  config = validation.validate(config)
  job = jobs.many(config, prior, scenes_lib.make_scenes(prompts, config.seed))
  return Run(job, layout_lib.scenes_layout(config, len(prompts)), params)


def measure(count: int, steps: int, rounds: int, warm_up: int) -> dict[str, Any]:
  """dict(prompts, rows=[dict(way, scene_steps_per_second, ratio, difference)]) of `count` captions of single solids.

  `difference` is the largest of any parameter from the separate runs', relative to the largest of its array.
  """
  prior, params = prior_lib.build("shapeworld")
  every = (f"a {colour} {shape}" for shape in solids.PLAIN for colour in solids.COLOURS)
  prompts = list(itertools.islice(every, count))
  ways: dict[str, Any] = {"separate runs": _Separate(prompts, prior, params)}
  ways["one by one in a program"] = _together(prompts, prior, params, 1)
  ways["all under vmap"] = _together(prompts, prior, params, 0)
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  for way in ways.values():
    way.run(warm_up)
  first = ways["separate runs"].params()
  rows = {name: dict(way=name, difference=_difference(first, way.params())) for name, way in ways.items()}
  for _ in range(rounds):
    for name, way in ways.items():
      seconds[name].append(way.run(steps))
  for name, row in rows.items():
    row["scene_steps_per_second"] = count * steps / float(np.median(seconds[name]))
    row["ratio"] = row["scene_steps_per_second"] / rows["separate runs"]["scene_steps_per_second"]
  return dict(prompts=prompts, rows=list(rows.values()))


def _difference(a: Any, b: Any) -> float:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
  return max(float(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-12)) for x, y in pairs)


def table(record: dict[str, Any]) -> str:
  """A record as Markdown."""
  lines = [f"| {len(record['prompts'])} prompts | steps of a scene per second | ratio | largest difference |",
           "|---|---|---|---|"]
  for row in record["rows"]:
    lines.append(f"| {row['way']} | {row['scene_steps_per_second']:.1f} | {row['ratio']:.2f} | "
                 f"{row['difference']:.0e} |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.scenes", description="Many prompts at once.")
  parser.add_argument("--prompts", type=int, default=16, help="how many (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=5, help="timed at a time (default: %(default)s)")
  parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
  parser.add_argument("--warm_up", type=int, default=40, help="steps before (default: %(default)s)")
  parser.add_argument("--json", type=Path, help="where to write all numbers")
  args = parser.parse_args(argv)
  compilation.prepare()
  record = dict(measure(args.prompts, args.steps, args.rounds, args.warm_up), machine=timing.machine())
  print(table(record))
  if args.json:
    files.write_json(record, args.json)


if __name__ == "__main__":
  main()
