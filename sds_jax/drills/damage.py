"""Damages checkpoints at random and restores: `python -m sds_jax.drills.damage --tries=100 --seed=0`.

Each try takes a folder with two checkpoints and cuts, flips bits in or deletes one file of the newer one. What is then
restored must be that one, bit for bit (the file did not matter), or the older one with a warning; all else is wrong.
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

OUTCOMES = ("the newer one", "the older one, with a warning", "WRONG")
OLDER, NEWER = 3, 6


def cut(file: Path, rng: random.Random) -> None:
  """Leave a beginning of it only, which may be nothing."""
  content = file.read_bytes()
  file.write_bytes(content[:rng.randrange(len(content))] if content else b"")


def flip(file: Path, rng: random.Random) -> None:
  """Flip one to eight bits; a file of no bytes gets one."""
  content = bytearray(file.read_bytes()) or bytearray(1)
  for _ in range(rng.randint(1, 8)):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


def delete(file: Path, rng: random.Random) -> None:
  """Delete it."""
  file.unlink()


KINDS: dict[str, Callable[[Path, random.Random], None]] = dict(cut=cut, flip=flip, delete=delete)


def make_state(seed: int) -> dict[str, Any]:
  """A state of a run, small: parameters, Adam's state, numbers of two kinds; as numpy's arrays."""
  rng = np.random.default_rng(seed)
  params = dict(grid=rng.normal(size=(16, 4)).astype(np.float32), mlp=dict(bias=rng.normal(size=8).astype(np.float32)))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  state = dict(step=np.int32(seed), params=params, opt_state=optimizer.init(params), occupancy=None,
               taken=rng.normal(size=64) > 0)
  return jax.tree.map(np.asarray, state)


def bits(state: Any) -> list[bytes]:
  """All bytes of a state."""
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def attempt(original: Path, folder: Path, rng: random.Random) -> tuple[str, str, str]:
  """(kind of damage, outcome, what happened, for a wrong one) of one try.

  Args:
    original: the two checkpoints; `folder` becomes a copy.
  """
  shutil.copytree(original, folder)
  step = folder / str(NEWER)
  file = rng.choice(sorted(path for path in step.rglob("*") if path.is_file()))
  kind = rng.choice(sorted(KINDS))
  KINDS[kind](file, rng)
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), Checkpoints(folder) as checkpoints:
      found = checkpoints.restore_newest(make_state(0))
  except Exception as error:  # whatever it is, it is the finding
    return kind, OUTCOMES[2], f"{kind} of {file.relative_to(step)}: {type(error).__name__}: {error}"
  story = f"{kind} of {file.relative_to(step)}: {found and found[0]}, {said.getvalue()!r}"
  return kind, _judge(found, said.getvalue(), folder), story


def _judge(found: tuple[int, Any] | None, said: str, folder: Path) -> str:
  if found and found[0] == NEWER and bits(found[1]) == bits(make_state(NEWER)) and not said:
    return OUTCOMES[0]
  warned = said.startswith(f"warning: the checkpoint of step {NEWER} ") and said.count("\n") == 1
  aside = (folder / "damaged" / str(NEWER)).is_dir() and not (folder / str(NEWER)).exists()
  if found and found[0] == OLDER and bits(found[1]) == bits(make_state(OLDER)) and warned and aside:
    return OUTCOMES[1]
  return OUTCOMES[2]


def drill(tries: int, seed: int, show: Callable[[str], None] = print) -> collections.Counter[tuple[str, str]]:
  """{(kind of damage, outcome): how often}; wrong ones are told to `show` as they come."""
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  with tempfile.TemporaryDirectory() as place:
    original = Path(place) / "original"
    with Checkpoints(original) as checkpoints:
      for step in (OLDER, NEWER):
        checkpoints.save(step, make_state(step), {})
    for number in range(tries):
      # Its own generator for each, so that one can be repeated without the others.
      kind, outcome, story = attempt(original, Path(place) / "copy", random.Random(f"{seed}/{number}"))
      counts[kind, outcome] += 1
      if outcome == OUTCOMES[2]:
        show(f"try {number}: {' '.join(story.split())[:900]}")
      shutil.rmtree(Path(place) / "copy")
  return counts


def table(counts: collections.Counter[tuple[str, str]]) -> str:
  """The counts, a line for each kind of damage."""
  rows = [("", *OUTCOMES), *((kind, *(str(counts[kind, outcome]) for outcome in OUTCOMES)) for kind in KINDS)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> None:
  """Run the drill; exit status 1 where anything was wrong."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tries", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  counts = drill(arguments.tries, arguments.seed)
  print(table(counts))
  wrong = sum(count for (_, outcome), count in counts.items() if outcome == OUTCOMES[2])
  print(f"{arguments.tries} tries, {wrong} wrong")
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
