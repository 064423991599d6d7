"""Kills and restarts training runs: `python -m sds_jax.drills.kill --runs=200 --seed=0`.

A run of 30 steps with a checkpoint every 3 steps is killed (SIGKILL) one to three times, at a uniform random moment or
inside a save, restarted by the same call after each kill, and finished. A right run ends with the same bits as an
uninterrupted run, logs every step exactly once in metrics.jsonl, reports no damaged checkpoint, and loses at most the
steps between two checkpoints at each kill.

`--job=walk` (the default) is the training loop with a step of a few lines, so a start takes a second; `--job=text3d` is
the tiny text-to-3D run, whose step compiles for many seconds.
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

PRELOADED = ["sds_jax.drills.killed_run", "sds_jax.io.tensorboard", "jaxlib.mlir.dialects.mhlo"]
"""Imports of a run; JAX imports the last module at its first lowering, a fifth of the time of a start."""
POLL = 0.0005
"""Seconds between two checks for a save in progress."""
LIMIT = 600
"""Seconds before a run counts as hanging."""


@dataclasses.dataclass
class DrillSetup:
  """The settings of a drill.

  Attributes:
    context: of multiprocessing, starts the runs.
    job: "walk" or "text3d".
    place: folder of the runs, the tiny prior and the compiled programs.
  """
  context: multiprocessing.context.BaseContext
  job: str
  place: Path

  def start(self, folder: Path) -> multiprocessing.process.BaseProcess:
    """Starts or resumes the run in `folder`."""
    process = self.context.Process(target=killed_run.main, args=(self.job, str(folder), str(self.place)))
    process.start()
    return process


def run_to_completion(setup: DrillSetup, folder: Path) -> float:
  """Runs without a kill and returns the duration in seconds.

  Raises:
    RuntimeError: the run failed or hangs.
  """
  began = time.monotonic()
  process = setup.start(folder)
  # A run without an end within the limit counts as a failure.
  process.join(LIMIT)
  if process.exitcode != 0:
    process.kill()
    process.join()
    raise RuntimeError(f"the run in {folder} ended with {process.exitcode}: {log(folder)[-2000:]}")
  return time.monotonic() - began


def kill_after(process: multiprocessing.process.BaseProcess, seconds: float) -> None:
  """Kills a process after some seconds, unless the process ends before."""
  process.join(seconds)
  process.kill()
  process.join()


def kill_in_save(process: multiprocessing.process.BaseProcess, folder: Path, save_number: int, delay: float) -> None:
  """Kills a process inside a save, unless the process ends before.

  Args:
    process: of the run.
    folder: of the run.
    save_number: number of the save, from 1.
    delay: seconds from the first sight of the temporary folder of the save to the kill.
  """
  saves: set[str] = set()
  while process.is_alive():
    # orbax writes into a temporary folder and renames the folder at the end of the save.
    saves.update(temporary(folder))
    if len(saves) >= save_number:
      process.join(delay)
      break
    time.sleep(POLL)
  process.kill()
  process.join()


def temporary(folder: Path) -> list[str]:
  """Lists the temporary folders of unfinished saves."""
  try:
    return [name for name in os.listdir(folder / "checkpoints") if "orbax-checkpoint-tmp" in name]
  except FileNotFoundError:
    return []


def log(folder: Path) -> str:
  """Returns the output of all starts of a run."""
  path = folder / killed_run.LOG
  return path.read_text(errors="replace") if path.exists() else ""


def last_step(folder: Path) -> int:
  """Returns the last complete step of metrics.jsonl, or 0."""
  path = folder / "metrics.jsonl"
  # A kill can cut the last line; a cut line does not match.
  steps = re.findall(r'^\{.*"step": (\d+).*\}$', path.read_text() if path.exists() else "", re.MULTILINE)
  return int(steps[-1]) if steps else 0


@dataclasses.dataclass
class StartResult:
  """The outcome of a start.

  Attributes:
    step: step of the restored checkpoint; 0 without a checkpoint, None for a kill before the loop.
    killed: whether the process ended by SIGKILL.
  """
  step: int | None
  killed: bool


def start_and_end(setup: DrillSetup, folder: Path,
                  end: Callable[[multiprocessing.process.BaseProcess], None]) -> StartResult:
  """Starts the run and calls `end`.

  Args:
    setup: of the drill.
    folder: of the run.
    end: waits for the process, or kills the process.
  """
  length_before = len(log(folder))
  process = setup.start(folder)
  end(process)
  output = log(folder)[length_before:]
  # The output of the training loop tells how far the start came.
  resumed = re.search(r"^going on from step (\d+) of ", output, re.MULTILINE)
  step = int(resumed[1]) if resumed else 0 if "compiling the step" in output else None
  return StartResult(step, process.exitcode == -9)


def kill_and_restart(setup: DrillSetup, folder: Path, rng: random.Random, duration: float,
                     counts: collections.Counter[str]) -> list[int]:
  """Kills and restarts a run, then lets the run finish.

  Args:
    setup: of the drill.
    folder: of the run.
    rng: draws the kills.
    duration: seconds of an uninterrupted run.
    counts: of the drill, updated here.

  Returns:
    Steps lost at each kill.
  """
  losses, reached = [], 0
  for kills_left in range(rng.randint(1, 3), -1, -1):
    # Drawn for every start, so that the sequence of draws does not depend on the kind of the kill.
    save_number, delay = rng.randint(1, STEPS // INTERVAL), rng.uniform(0.0, 0.03)
    if not kills_left:
      end = lambda process: process.join(LIMIT)  # noqa: E731
    elif rng.random() < 0.5:
      end = functools.partial(kill_after, seconds=rng.uniform(0.0, duration))
    else:
      end = functools.partial(kill_in_save, folder=folder, save_number=save_number, delay=delay)
    start = start_and_end(setup, folder, end)
    # A start killed before the loop neither loses nor finishes steps.
    if start.step is not None:
      losses.append(reached - start.step)
      reached = last_step(folder)
    counts["kills"] += start.killed
    # A temporary folder left behind proves a kill inside a save.
    counts["kills inside a save"] += bool(start.killed and temporary(folder))
  return losses


def find_problems(folder: Path, reference: list[bytes], losses: list[int]) -> list[str]:
  """Lists the problems of a finished run.

  Args:
    folder: of the run.
    reference: result of `final_bits` for an uninterrupted run.
    losses: steps lost at each kill.
  """
  problems = []
  # Every step exactly once and in order, whatever the kills.
  steps = re.findall(r'"step": (\d+)', (folder / "metrics.jsonl").read_text())
  if steps != [str(step) for step in range(1, STEPS + 1)]:
    problems.append(f"metrics.jsonl has the steps {' '.join(steps)}")
  # At most the steps since the last finished save may be lost.
  if max(losses, default=0) > INTERVAL:
    problems.append(f"a kill has cost {max(losses)} steps")
  if "warning" in log(folder) or (folder / "checkpoints" / "damaged").exists():
    problems.append("a checkpoint was reported as damaged")
  if temporary(folder):
    problems.append(f"temporary folders left: {temporary(folder)}")
  try:
    if final_bits(folder) != reference:
      problems.append("the final state differs from an uninterrupted run")
  except (OSError, ValueError) as error:
    problems.append(f"the final state cannot be read: {error}")
  return [f"{text}\n{log(folder)[-1500:]}" for text in problems]


def final_bits(folder: Path) -> list[bytes]:
  """Returns the bytes of the final state."""
  with Checkpoints(folder / "checkpoints") as checkpoints:
    state = checkpoints.restore(STEPS, checkpoints.abstract_state(STEPS))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def drill(runs: int, seed: int, job: str, show: Callable[[str], None] = print) -> collections.Counter[str]:
  """Kills and restarts runs; returns counts.

  Args:
    runs: number of runs.
    seed: of the kills.
    job: "walk" or "text3d".
    show: called with each problem, and with the progress.

  Raises:
    RuntimeError: an uninterrupted run fails.
  """
  counts: collections.Counter[str] = collections.Counter(runs=0, wrong=0)
  # A fork from a preloaded server; the server itself never starts a JAX backend.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(PRELOADED)
  # In memory if possible: SIGKILL leaves the system running, so the drill does not depend on a disk.
  with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
    setup = DrillSetup(context, job, Path(name))
    tiny.write_prior(setup.place / killed_run.PRIOR)
    # The first reference run compiles; the second gives the duration of a run from compiled programs.
    for reference in ("first", "second"):
      duration = run_to_completion(setup, setup.place / reference)
    expected, began = final_bits(setup.place / "second"), time.monotonic()
    if final_bits(setup.place / "first") != expected:
      show("two uninterrupted runs differ")
      counts["wrong"] += 1
    for number in range(runs):
      folder = setup.place / "run"
      losses = kill_and_restart(setup, folder, random.Random(f"{seed}/{number}"), duration, counts)
      problems = find_problems(folder, expected, losses)
      for text in problems:
        show(f"run {number}: {text}")
      counts["wrong"] += bool(problems)
      counts["runs"] += 1
      counts["starts that went on"] += sum(loss is not None for loss in losses)
      counts["largest loss in steps"] = max([counts["largest loss in steps"], *losses])
      shutil.rmtree(folder)
      if (number + 1) % 10 == 0 or number + 1 == runs:
        show(f"{number + 1} of {runs} runs, {time.monotonic() - began:.0f} s, {counts['kills']} kills, "
             f"{counts['wrong']} wrong")
  return counts


def main() -> None:
  """Runs the command line; exit status 1 after a problem."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, default=200, help="number of runs")
  parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
  parser.add_argument("--job", choices=["walk", "text3d"], default="walk", help="kind of the runs")
  arguments = parser.parse_args()
  counts = drill(arguments.runs, arguments.seed, arguments.job)
  print(", ".join(f"{name}: {count}" for name, count in counts.items()))
  sys.exit(1 if counts["wrong"] else 0)


if __name__ == "__main__":
  main()
