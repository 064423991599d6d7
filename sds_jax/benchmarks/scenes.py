"""Many prompts at once against one after the other: steps a second of all scenes, and the difference of the results.

    python -m sds_jax.benchmarks.scenes --prompts=16 --steps=20 --json=scenes.json

Three ways are compiled once each and timed in turns, with the default settings and prior: the step of one scene, as 16
separate runs have it; the step of all scenes, one scene after the other; the step of all scenes together under `vmap`.
"""
from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sds_jax import compilation, settings as settings_lib, terminal
from sds_jax.benchmarks import timing
from sds_jax.benchmarks.timed_program import TimedProgram
from sds_jax.io import files
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.prior import Prior
from sds_jax.settings.text3d import Text3D
from sds_jax.shapeworld import solids
from sds_jax.tasks import ScenesTask, Text3DTask
from sds_jax.training.scenes import make_scenes
from sds_jax.training.layout import make_layout, make_scene_layout
from sds_jax.types import Params


def _default_settings(**changes: Any) -> Text3D:
  """Returns the default settings on one device, with changes by dotted name."""
  config = settings_lib.defaults()
  config.update_from_flattened_dict({"parallel.devices": 1, **changes})
  return settings_lib.validate(config)


class _SeparatePrograms:
  """One program for each prompt, all with the executable of the first."""

  def __init__(self, prompts: Sequence[str], prior: Prior, prior_params: Params):
    self._programs, step = [], None
    for prompt in prompts:
      settings = _default_settings(prompt=prompt)
      layout = make_layout(settings.parallel, settings.training.views)
      # Prompts differ in their embeddings only, which are arguments, so one executable serves all.
      program = TimedProgram(Text3DTask(settings).program(prior), layout, prior_params, step)
      self._programs.append(program)
      step = program.step

  def run(self, steps: int) -> float:
    """Runs this many steps of every prompt, and returns the seconds."""
    return sum(program.run(steps) for program in self._programs)

  def params(self) -> Any:
    """Returns the parameters of all prompts, leaves [N, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[program.params() for program in self._programs])


def _scenes_program(prompts: Sequence[str], prior: Prior, prior_params: Params, together: int) -> TimedProgram:
  """Returns the program of all prompts as scenes of one run.

  A step takes `together` scenes at a time; 0 stands for all.
  """
  task = ScenesTask(_default_settings(**{"parallel.together": together}))
  task.scenes = make_scenes(prompts, task.settings.seed)
  return TimedProgram(task.program(prior), make_scene_layout(task.settings.parallel, len(prompts)), prior_params)


def measure(count: int, steps: int, rounds: int, warm_up: int) -> dict[str, Any]:
  """Times the three ways for `count` captions of single solids.

  Args:
    count: number of prompts.
    steps: of a turn.
    rounds: number of turns of each way.
    warm_up: steps before the first turn; the results are compared after them.

  Returns:
    dict(prompts, rows=[dict(way, scene_steps_per_second, ratio, difference)]). `difference` is the largest of any
    parameter from the separate runs' parameter, relative to the largest of its array.
  """
  prior, prior_params = prior_lib.build("shapeworld")
  every = (f"a {colour} {shape}" for shape in solids.PLAIN for colour in solids.COLOURS)
  prompts = list(itertools.islice(every, count))
  ways: dict[str, Any] = {"separate runs": _SeparatePrograms(prompts, prior, prior_params)}
  ways["one by one in a program"] = _scenes_program(prompts, prior, prior_params, 1)
  ways["all under vmap"] = _scenes_program(prompts, prior, prior_params, 0)
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  for way in ways.values():
    way.run(warm_up)
  # Compared after equally many steps; the timing below goes on from here.
  separate = ways["separate runs"].params()
  rows = {name: dict(way=name, difference=_difference(separate, way.params())) for name, way in ways.items()}
  for _ in range(rounds):
    for name, way in ways.items():
      seconds[name].append(way.run(steps))
  for name, row in rows.items():
    # The median, which a turn disturbed by other work does not move.
    row["scene_steps_per_second"] = count * steps / float(np.median(seconds[name]))
    row["ratio"] = row["scene_steps_per_second"] / rows["separate runs"]["scene_steps_per_second"]
  return dict(prompts=prompts, rows=list(rows.values()))


def _difference(a: Any, b: Any) -> float:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
  # Relative to the largest of the array, as single parameters may be near 0.
  return max(float(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-12)) for x, y in pairs)


def table(record: dict[str, Any]) -> str:
  """Returns a record as a Markdown table."""
  lines = [f"| {len(record['prompts'])} prompts | steps of a scene per second | ratio | largest difference |",
           "|---|---|---|---|"]
  for row in record["rows"]:
    lines.append(f"| {row['way']} | {row['scene_steps_per_second']:.1f} | {row['ratio']:.2f} | "
                 f"{row['difference']:.0e} |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.scenes", description="Many prompts at once.")
  parser.add_argument("--prompts", type=int, default=16, help="number of prompts (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=5, help="steps of a turn (default: %(default)s)")
  parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
  parser.add_argument("--warm_up", type=int, default=40, help="steps before the first turn (default: %(default)s)")
  parser.add_argument("--json", type=terminal.user_path, help="file for all numbers")
  args = parser.parse_args(argv)
  compilation.prepare()
  record = dict(measure(args.prompts, args.steps, args.rounds, args.warm_up), machine=timing.machine())
  print(table(record))
  if args.json:
    files.write_json(record, args.json)


if __name__ == "__main__":
  main()
