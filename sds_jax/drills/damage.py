"""Damages checkpoints at random and restores: `python -m sds_jax.drills.damage --tries=100 --seed=0`.

Each try copies a folder with two checkpoints and truncates, corrupts or deletes a file of the newer checkpoint. The
restored checkpoint must be the newer, bit for bit (the file did not matter), or the older with a warning. Every other
outcome is wrong.
"""
from __future__ import annotations

import argparse
import collections
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from sds_jax.io.checkpoints import Checkpoints

OUTCOMES = ("the newer checkpoint", "the older checkpoint, with a warning", "WRONG")
OLDER, NEWER = 3, 6
"""Steps of the two checkpoints."""


def cut(file: Path, rng: random.Random) -> None:
  """Truncates a file at a random byte."""
  content = file.read_bytes()
  file.write_bytes(content[:rng.randrange(len(content))] if content else b"")


def flip(file: Path, rng: random.Random) -> None:
  """Flips up to eight bits of a file.

  An empty file first gets a zero byte.
  """
  # An empty file has no bit to flip.
  content = bytearray(file.read_bytes()) or bytearray(1)
  for _ in range(rng.randint(1, 8)):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


def delete(file: Path, rng: random.Random) -> None:
  """Deletes a file."""
  file.unlink()


KINDS: dict[str, Callable[[Path, random.Random], None]] = dict(cut=cut, flip=flip, delete=delete)


def make_state(seed: int) -> dict[str, Any]:
  """Draws a small training state of numpy arrays.

  The state holds parameters, Adam's state, an integer, booleans and None.
  """
  rng = np.random.default_rng(seed)
  params = dict(grid=rng.normal(size=(16, 4)).astype(np.float32), mlp=dict(bias=rng.normal(size=8).astype(np.float32)))
  # The structure of a real optimiser state: nested tuples with empty nodes.
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  state = dict(step=np.int32(seed), params=params, opt_state=optimizer.init(params), occupancy=None,
               taken=rng.normal(size=64) > 0)
  return jax.tree.map(np.asarray, state)


def bits(state: Any) -> list[bytes]:
  """Returns the bytes of all leaves of a state."""
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def attempt(original: Path, folder: Path, rng: random.Random) -> tuple[str, str, str]:
  """Damages a copy of the checkpoints and restores.

  Args:
    original: folder with the two checkpoints.
    folder: becomes the damaged copy.
    rng: chooses the file and the damage.

  Returns:
    kind of damage, outcome, description of the events.
  """
  shutil.copytree(original, folder)
  step = folder / str(NEWER)
  # Sorted, because the order of `rglob` differs between file systems.
  file = rng.choice(sorted(path for path in step.rglob("*") if path.is_file()))
  kind = rng.choice(sorted(KINDS))
  KINDS[kind](file, rng)
  stderr = io.StringIO()
  try:
    with contextlib.redirect_stderr(stderr), Checkpoints(folder) as checkpoints:
      restored = checkpoints.restore_newest(make_state(0))
  except Exception as error:  # any exception is a wrong outcome, never a reason to stop the drill
    return kind, OUTCOMES[2], f"{kind} of {file.relative_to(step)}: {type(error).__name__}: {error}"
  story = f"{kind} of {file.relative_to(step)}: {restored and restored[0]}, {stderr.getvalue()!r}"
  return kind, _outcome(restored, stderr.getvalue(), folder), story


def _outcome(restored: tuple[int, Any] | None, stderr: str, folder: Path) -> str:
  # Damage may leave the checkpoint as good as new, such as in a file that no reader needs.
  if restored and restored[0] == NEWER and bits(restored[1]) == bits(make_state(NEWER)) and not stderr:
    return OUTCOMES[0]
  warned = stderr.startswith(f"warning: the checkpoint of step {NEWER} ") and stderr.count("\n") == 1
  # The damaged checkpoint must have moved out of the way, into the folder `damaged`.
  aside = (folder / "damaged" / str(NEWER)).is_dir() and not (folder / str(NEWER)).exists()
  if restored and restored[0] == OLDER and bits(restored[1]) == bits(make_state(OLDER)) and warned and aside:
    return OUTCOMES[1]
  return OUTCOMES[2]


def drill(tries: int, seed: int, show: Callable[[str], None] = print) -> collections.Counter[tuple[str, str]]:
  """Runs tries and counts their outcomes.

  Args:
    tries: number of tries.
    seed: of the damage.
    show: called with a description of each wrong outcome.

  Returns:
    {(kind of damage, outcome): count}.
  """
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  with tempfile.TemporaryDirectory() as place:
    original = Path(place) / "original"
    with Checkpoints(original) as checkpoints:
      for step in (OLDER, NEWER):
        checkpoints.save(step, make_state(step), {})
    for number in range(tries):
      # A generator per try: any try can be repeated without the others.
      kind, outcome, story = attempt(original, Path(place) / "copy", random.Random(f"{seed}/{number}"))
      counts[kind, outcome] += 1
      # Long tracebacks are joined into a line of at most 900 characters.
      if outcome == OUTCOMES[2]:
        show(f"try {number}: {' '.join(story.split())[:900]}")
      shutil.rmtree(Path(place) / "copy")
  return counts


def table(counts: collections.Counter[tuple[str, str]]) -> str:
  """Formats the counts as a text table.

  Each kind of damage has a line.
  """
  rows = [("", *OUTCOMES), *((kind, *(str(counts[kind, outcome]) for outcome in OUTCOMES)) for kind in KINDS)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> None:
  """Runs the command line; exit status 1 after a wrong outcome."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tries", type=int, default=100, help="number of tries")
  parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
  arguments = parser.parse_args()
  counts = drill(arguments.tries, arguments.seed)
  print(table(counts))
  wrong = sum(count for (_, outcome), count in counts.items() if outcome == OUTCOMES[2])
  print(f"{arguments.tries} tries, {wrong} wrong")
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
