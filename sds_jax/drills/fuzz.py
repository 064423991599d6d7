r"""The command under hostile command lines: each ends well, or in one line on stderr with status 2.

    python -m sds_jax.drills.fuzz --num=500 --seed=0

Every try is the real command (`sds_jax.cli.main`) in a process of its own, with a tiny prior and one step, in a folder
of its own that is also its home and holds its caches. What is right: status 0 with report.html or image*.png in the
run's folder and no traceback; or status 2 and exactly one line "error: ..." on stderr; either way in the time allowed,
with no file outside of the run's folder and no half-written one in it. Failures are shown with the command that repeats
them; the exit status is 1 if there were any.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import sds_jax
from sds_jax.drills import fuzz_cases, fuzz_child
from sds_jax.io import lock

CONFIGS = Path(sds_jax.__file__).resolve().parents[1] / "configs"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
"""Of the children: what they run takes longer to compile than to run, and none asks the hub."""


def main(arguments: list[str] | None = None) -> int:
  """Run the drill; 0 where all went well, else 1.

  Args:
    arguments: of the command line; None: this process's.
  """
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--num", type=int, default=500, help="number of tries")
  parser.add_argument("--seed", type=int, default=0, help="of the tries; the same seed gives the same ones")
  parser.add_argument("--strange", type=float, default=0.15, help="share of tries that may be legal and run through")
  parser.add_argument("--timeout", type=float, default=120.0, help="seconds that a try may take")
  parser.add_argument("--only", type=int, help="the number of the one try to make; its output is shown")
  parser.add_argument("--configs", type=Path, default=CONFIGS, help="the folder with text.py and image2d.py")
  options = parser.parse_args(arguments)
  if not (options.configs / "text.py").is_file():
    parser.error(f"--configs={options.configs} has no text.py: name the folder configs of the repository")
  with tempfile.TemporaryDirectory(prefix="sds_jax_fuzz_") as scratch:
    return _drill(options, Path(scratch).resolve())


def _drill(options: argparse.Namespace, scratch: Path) -> int:
  fuzz_cases.write_files(scratch)
  begin, counts, failed, slowest = time.perf_counter(), Counter(), 0, (0.0, 0)
  context = _forkserver()
  for number, words in enumerate(
      fuzz_cases.tries(options.configs.resolve(), scratch, options.num, options.seed, options.strange)):
    if options.only not in (None, number):
      continue
    started = time.perf_counter()
    status, problem = attempt(context, words, scratch, options.timeout)
    slowest = max(slowest, (time.perf_counter() - started, number))
    counts[status] += 1
    if problem or options.only is not None:
      failed += bool(problem)
      shown = " ".join(ascii(word) for word in words if options.only is not None or word.startswith("--config=") or
                       words.index(word) > len(words) - 4)
      print(f"try {number}: {problem or 'right'}\n  {shown[:2000]}\n  again: python -m sds_jax.drills.fuzz "
            f"--num={options.num} --seed={options.seed} --strange={options.strange} --only={number}", flush=True)
      if options.only is not None:
        print((scratch / "try" / "stdout").read_text(errors="replace"),
              (scratch / "try" / "stderr").read_text(errors="replace"), sep="\n")
    shutil.rmtree(scratch / "try", ignore_errors=True)
  print(f"{sum(counts.values())} tries in {time.perf_counter() - begin:.0f} s: {counts[0]} ran through, "
        f"{counts[2]} were refused in one line, {failed} failed; the slowest, try {slowest[1]}, took "
        f"{slowest[0]:.1f} s", flush=True)
  return int(failed > 0)


def _forkserver() -> multiprocessing.context.ForkServerContext:
  """Where children are forked from: a process that has imported all and started no backend."""
  os.environ.update(ENVIRONMENT)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["sds_jax.drills.fuzz_child", "jaxlib.mlir.dialects.mhlo"])  # JAX imports it late
  return context


def attempt(context: multiprocessing.context.BaseContext, words: list[str], scratch: Path,
            timeout: float) -> tuple[int | None, str]:
  """One try in `scratch/try`, which stays: (exit status, None for a hang; what is wrong, "" for nothing)."""
  root = scratch / "try"
  for name in ("here", "home", "cache", "tmp"):
    (root / name).mkdir(parents=True)
  (root / "here" / "file").write_text("x")
  (root / "here" / "loop").symlink_to("loop")
  before = _listing(scratch)
  child = context.Process(target=fuzz_child.run, args=(words, root, scratch / "compiled"))
  child.start()
  child.join(timeout)
  if child.exitcode is None:
    child.kill()
    child.join()
    return None, f"still running after {timeout:.0f} s"
  allowed = [root / "cache", root / "stdout", root / "stderr", scratch / "compiled"]
  return child.exitcode, judge(child.exitcode, words, root, _listing(scratch) - before, allowed)


def judge(status: int, words: list[str], root: Path, new: set[Path], allowed: list[Path]) -> str:
  """What is wrong with the end of a try; "" where nothing is.

  Args:
    status: exit status.
    words: the command line.
    root: of the try; holds stdout, stderr and `here`, where it ran.
    new: what has come into being.
    allowed: where things may come into being beside the run's folder.
  """
  errors = (root / "stderr").read_text(encoding="utf-8", errors="replace")
  folder = run_folder(words, root / "here", new)
  if status == 2:
    if not (errors.startswith("error: ") and len(errors.splitlines()) == 1 and errors.endswith("\n")):
      return f"status 2 with this on stderr: {errors[-3000:]!r}"
  elif status != 0:
    return f"status {status}, with this on stderr: {errors[-3000:]}"
  elif "Traceback" in errors:
    return f"status 0 with a traceback: {errors[-3000:]}"
  elif not folder or not ((folder / "report.html").is_file() or list(folder.glob("image*.png"))):
    return f"status 0 without report.html or image*.png in {folder}"
  places = [*allowed, folder] if folder else allowed
  stray = [path for path in new if not any(path.is_relative_to(place) for place in places)
           and not (folder and folder.is_relative_to(path))]
  if stray:
    return f"outside of the run's folder there is now {sorted(map(str, stray))[:5]}"
  half = [path for path in new if folder and path.is_relative_to(folder) and (".tmp" in path.suffixes or
          path.name.startswith(".") and path.name != lock.FILE_NAME or "orbax-checkpoint-tmp" in path.name)]
  return f"half-written: {sorted(map(str, half))[:5]}" if half else ""


def run_folder(words: list[str], here: Path, new: set[Path]) -> Path | None:
  """The folder that the command line asks for; runs/<one name> where it names none; None: it cannot be one."""
  given = {"--workdir": "", "--config.workdir": ""}
  given |= {name: value for name, _, value in (word.partition("=") for word in words) if name in given}
  chosen = given["--workdir"] or given["--config.workdir"]
  if chosen:
    return None if "\0" in chosen else Path(os.path.normpath(here / chosen))
  return next((path for path in new if path.parent == here / "runs"), None)


def _listing(folder: Path) -> set[Path]:
  found = set()
  for place, folders, files in os.walk(folder):
    if Path(place) == folder:
      folders[:] = [name for name in folders if name != "compiled"]
    found |= {Path(place) / name for name in (*folders, *files)}
  return found


if __name__ == "__main__":
  sys.exit(main())
