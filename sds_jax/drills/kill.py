"""Kills runs and starts them again: `python -m sds_jax.drills.kill --runs=200 --seed=0`.

A run of 30 steps with a checkpoint every 3 is killed (SIGKILL) one to three times, at a moment drawn uniformly from its
duration or inside a save, started again by the same call each time, and finished. It must end with the bits of a run
that nobody killed, have every step once in metrics.jsonl, take nothing for damaged, and lose no more steps at each kill
than there are between two checkpoints.

`--job=walk` (the default) is the trainer's loop with a step of a few lines, so that a start takes a second;
`--job=text3d` is the tiny text-to-3D run, whose step takes many seconds to compile.
"""
from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from sds_jax.drills import killed_run, tiny
from sds_jax.drills.killed_run import INTERVAL, STEPS
from sds_jax.io.checkpoints import Checkpoints

PRELOADED = ["sds_jax.drills.killed_run", "sds_jax.training.image2d", "sds_jax.priors.prior", "sds_jax.io.tensorboard",
             "jaxlib.mlir.dialects.mhlo"]
"""What a run imports, at once or late; the last JAX does at its first lowering, for a fifth of the time of a start."""
POLL = 0.0005
"""Seconds between two looks at a run that is to be killed inside a save."""
LIMIT = 600
"""Seconds after which a run hangs."""


@dataclasses.dataclass
class Arena:
  """Where runs take place, and how they are started: the settings of one drill."""
  context: multiprocessing.context.BaseContext
  job: str
  place: Path

  def start(self, folder: Path) -> multiprocessing.process.BaseProcess:
    """Begins or goes on with the run in `folder`."""
    process = self.context.Process(target=killed_run.main, args=(self.job, str(folder), str(self.place)))
    process.start()
    return process


def run_to_its_end(arena: Arena, folder: Path) -> float:
  """Seconds that it took.

  Raises:
    RuntimeError: it failed, or hangs.
  """
  began = time.monotonic()
  process = arena.start(folder)
  process.join(LIMIT)
  if process.exitcode != 0:
    process.kill()
    process.join()
    raise RuntimeError(f"ended with {process.exitcode}: {log(folder)[-2000:]}")
  return time.monotonic() - began


def killed_at(process: multiprocessing.process.BaseProcess, seconds: float) -> None:
  """Kills it after so many seconds, unless it ends before."""
  process.join(seconds)
  process.kill()
  process.join()


def killed_in_a_save(process: multiprocessing.process.BaseProcess, folder: Path, which: int, later: float) -> None:
  """Kills it `later` seconds after the temporary folder of its `which`-th save was seen, unless it ends before."""
  seen: set[str] = set()
  while process.is_alive():
    seen.update(temporary(folder))
    if len(seen) >= which:
      process.join(later)
      break
    time.sleep(POLL)
  process.kill()
  process.join()


def temporary(folder: Path) -> list[str]:
  """Names of the saves that are under way, or were when the run was killed."""
  try:
    return [name for name in os.listdir(folder / "checkpoints") if "orbax-checkpoint-tmp" in name]
  except FileNotFoundError:
    return []


def log(folder: Path) -> str:
  """What the starts of a run have printed since the log was last removed."""
  path = folder / killed_run.LOG
  return path.read_text(errors="replace") if path.exists() else ""


def last_step(folder: Path) -> int:
  """The last step that has left a whole line in metrics.jsonl; 0: none."""
  path = folder / "metrics.jsonl"
  steps = re.findall(r'^\{.*"step": (\d+).*\}$', path.read_text() if path.exists() else "", re.MULTILINE)
  return int(steps[-1]) if steps else 0


@dataclasses.dataclass
class Start:
  """One start of a run: the step from which it went on (None: it did not come that far), and whether it was killed."""
  step: int | None
  killed: bool


def start_again(arena: Arena, folder: Path, end: Callable[[multiprocessing.process.BaseProcess], None]) -> Start:
  """Starts the run, and lets `end` see to its end."""
  told = len(log(folder))
  process = arena.start(folder)
  end(process)
  said = log(folder)[told:]
  going_on = re.search(r"^going on from step (\d+) of ", said, re.MULTILINE)
  return Start(int(going_on[1]) if going_on else 0 if "compiling the step" in said else None, process.exitcode == -9)


def harass(arena: Arena, folder: Path, rng: random.Random, duration: float,
           counts: collections.Counter[str]) -> list[int]:
  """One run, killed and started again, at last left to finish; the steps lost at each kill. Adds to `counts`."""
  losses, reached = [], 0
  for left in range(rng.randint(1, 3), -1, -1):
    which, later = rng.randint(1, STEPS // INTERVAL), rng.uniform(0.0, 0.03)
    if not left:
      end = lambda process: process.join(LIMIT)  # noqa: E731
    elif rng.random() < 0.5:
      end = functools.partial(killed_at, seconds=rng.uniform(0.0, duration))
    else:
      end = functools.partial(killed_in_a_save, folder=folder, which=which, later=later)
    start = start_again(arena, folder, end)
    if start.step is not None:
      losses.append(reached - start.step)
      reached = last_step(folder)
    counts["kills"] += start.killed
    counts["kills inside a save"] += bool(start.killed and temporary(folder))
  return losses


def problems(folder: Path, reference: list[bytes], losses: list[int]) -> list[str]:
  """What is wrong with a run that has ended."""
  found = []
  steps = re.findall(r'"step": (\d+)', (folder / "metrics.jsonl").read_text())
  if steps != [str(step) for step in range(1, STEPS + 1)]:
    found.append(f"metrics.jsonl has the steps {' '.join(steps)}")
  if max(losses, default=0) > INTERVAL:
    found.append(f"a kill has cost {max(losses)} steps")
  if "warning" in log(folder) or (folder / "checkpoints" / "damaged").exists():
    found.append("a checkpoint was taken for damaged")
  if temporary(folder):
    found.append(f"left behind: {temporary(folder)}")
  try:
    if final_bits(folder) != reference:
      found.append("its final state is another one")
  except (OSError, ValueError) as error:
    found.append(f"its final state cannot be read: {error}")
  return [f"{text}\n{log(folder)[-1500:]}" for text in found]


def final_bits(folder: Path) -> list[bytes]:
  """All bytes of the state after the last step."""
  with Checkpoints(folder / "checkpoints") as checkpoints:
    state = checkpoints.restore(STEPS, checkpoints.abstract_state(STEPS))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def drill(runs: int, seed: int, job: str, show: Callable[[str], None] = print) -> collections.Counter[str]:
  """How many runs, kills and so on there were; what is wrong is told to `show` as it comes.

  Raises:
    RuntimeError: the run fails that nobody kills.
  """
  counts: collections.Counter[str] = collections.Counter(runs=0, wrong=0)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(PRELOADED)
  # In memory where that can be: a kill leaves the system running, and disks take their time.
  with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
    arena = Arena(context, job, Path(name))
    tiny.write_prior(arena.place / killed_run.PRIOR)
    for reference in ("first", "second"):  # the first one compiles; the second one tells how long a run takes
      duration = run_to_its_end(arena, arena.place / reference)
    expected, began = final_bits(arena.place / "second"), time.monotonic()
    if final_bits(arena.place / "first") != expected:
      show("two runs that nobody killed differ")
      counts["wrong"] += 1
    for number in range(runs):
      folder = arena.place / "run"
      losses = harass(arena, folder, random.Random(f"{seed}/{number}"), duration, counts)
      wrong = problems(folder, expected, losses)
      for text in wrong:
        show(f"run {number}: {text}")
      counts["wrong"] += bool(wrong)
      counts["runs"] += 1
      counts["starts that went on"] += sum(loss is not None for loss in losses)
      counts["largest loss in steps"] = max([counts["largest loss in steps"], *losses])
      shutil.rmtree(folder)
      if (number + 1) % 10 == 0 or number + 1 == runs:
        show(f"{number + 1} of {runs} runs, {time.monotonic() - began:.0f} s, {counts['kills']} kills, "
             f"{counts['wrong']} wrong")
  return counts


def main() -> None:
  """Run the drill; exit status 1 where anything was wrong."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--job", choices=["walk", "text3d"], default="walk")
  arguments = parser.parse_args()
  counts = drill(arguments.runs, arguments.seed, arguments.job)
  print(", ".join(f"{name}: {count}" for name, count in counts.items()))
  sys.exit(1 if counts["wrong"] else 0)


if __name__ == "__main__":
  main()
