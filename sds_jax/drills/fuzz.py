r"""The command under hostile command lines: each run succeeds, or fails with status 2 and a single line on stderr.

    python -m sds_jax.drills.fuzz --num=500 --seed=0

Every try runs the real command (`sds_jax.commands.main.main`) in a separate process, with a tiny prior and a single
step, in a fresh folder with a home and caches. Hostile are settings, flags, files of settings, photos, priors with
their tokenizers, and folders with files of others or a spoilt run. A try is right if the status is 0 with report.html
or image*.png in the folder of the run and no traceback (a share of the accepted runs ends where training would begin),
or if the status is 2, or 3 for a run that diverged, with exactly one line "error: ..." on stderr. In all cases the try
must end in the time allowed, write no file outside the folder of the run, leave no partial file inside, and change or
remove no file that was there before, by a digest of all of them.
Failures are printed with a command to repeat the try; the exit status is then 1.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import sds_jax
from sds_jax.drills import fuzz_cases, fuzz_child, hostile_folders
from sds_jax.io import lock

CONFIGS = Path(sds_jax.__file__).resolve().parents[1] / "configs"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
"""Environment of the children: compilation dominates their time, and no child may query the hub."""


def main(arguments: list[str] | None = None) -> int:
  """Runs the command line; returns 1 after a failure.

  Args:
    arguments: of the command line; None means `sys.argv`.
  """
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--num", type=int, default=500, help="number of tries")
  parser.add_argument("--seed", type=int, default=0, help="seed of the tries; equal seeds give equal tries")
  parser.add_argument("--strange", type=float, default=0.15, help="share of unusual but possibly legal tries")
  parser.add_argument("--whole", type=float, default=0.25, help="share of accepted runs that train and write outputs")
  parser.add_argument("--timeout", type=float, default=300.0, help="seconds allowed for a try")
  parser.add_argument("--only", type=int, help="number of a single try to run; prints its output")
  parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder with text.py, image2d.py and image.py")
  options = parser.parse_args(arguments)
  if not (options.configs / "text.py").is_file():
    parser.error(f"--configs={options.configs} has no text.py; give the folder configs of the repository")
  with tempfile.TemporaryDirectory(prefix="sds_jax_fuzz_") as scratch:
    return _drill(options, Path(scratch).resolve())


def _drill(options: argparse.Namespace, scratch: Path) -> int:
  fuzz_cases.write_files(scratch)
  begin, counts, failed, slowest = time.perf_counter(), Counter(), 0, (0.0, 0)
  # A fork takes milliseconds; a fresh interpreter with all imports takes seconds.
  context = _forkserver()
  for number, arguments in enumerate(
      fuzz_cases.tries(options.configs.resolve(), scratch, options.num, options.seed, options.strange)):
    # Every try has its own generator, so skipped tries do not change the others, except for the first ones: they are
    # the finished runs that others spoil.
    chosen = options.only in (None, number)
    if not chosen and number >= len(fuzz_cases.FILES):
      continue
    started = time.perf_counter()
    # The accepted runs that end before their training take a fifth of the time.
    whole = number < len(fuzz_cases.FILES) or random.Random(f"{options.seed}/{number}/whole").random() < options.whole
    status, problem = attempt(context, arguments, scratch, options.timeout, whole)
    accepted = (scratch / "try" / fuzz_child.ACCEPTED).exists()
    if number < len(fuzz_cases.FILES) and (scratch / "try" / "here" / "run").is_dir():
      shutil.copytree(scratch / "try" / "here" / "run", scratch / "done" / str(number), symlinks=True)
    if chosen:
      slowest = max(slowest, (time.perf_counter() - started, number))
      counts[fuzz_child.ACCEPTED if accepted and status == 0 else status] += 1
    if chosen and (problem or options.only is not None):
      failed += bool(problem)
      # The base settings are the same in every try; the last arguments are the interesting part.
      shown = " ".join(ascii(word) for word in arguments if options.only is not None or word.startswith("--config=") or
                       arguments.index(word) > len(arguments) - 4)
      print(f"try {number}: {problem or 'right'}\n  {shown[:2000]}\n  again: python -m sds_jax.drills.fuzz "
            f"--num={options.num} --seed={options.seed} --strange={options.strange} --whole={options.whole} "
            f"--only={number}", flush=True)
      if options.only is not None:
        print((scratch / "try" / "stdout").read_text(errors="replace"),
              (scratch / "try" / "stderr").read_text(errors="replace"), sep="\n")
    shutil.rmtree(scratch / "try", ignore_errors=True)
  print(f"{sum(counts.values())} tries in {time.perf_counter() - begin:.0f} s: {counts[0]} ran through, "
        f"{counts[fuzz_child.ACCEPTED]} were accepted and ended there, {counts[2]} were refused in one line, "
        f"{counts[3]} diverged, {failed} failed; the slowest, try {slowest[1]}, took {slowest[0]:.1f} s", flush=True)
  return int(failed > 0)


def _forkserver() -> multiprocessing.context.ForkServerContext:
  """Returns a context forking children from a preloaded process.

  The process has all imports and no started backend.
  """
  os.environ.update(ENVIRONMENT)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["sds_jax.drills.fuzz_child", "jaxlib.mlir.dialects.mhlo"])  # a late import of JAX
  return context


def attempt(context: multiprocessing.context.BaseContext, arguments: list[str], scratch: Path,
            timeout: float, whole: bool = True) -> tuple[int | None, str]:
  """Runs a try in `scratch/try` and leaves the folder in place.

  Args:
    context: result of `_forkserver`.
    arguments: the command line without the program.
    scratch: folder of `fuzz_cases.write_files`.
    timeout: seconds.
    whole: whether a run that is accepted trains.

  Returns:
    exit status (None for a hang), problem ("" for none).
  """
  root = scratch / "try"
  for name in ("here", "home", "cache", "tmp"):
    (root / name).mkdir(parents=True)
  (root / "here" / "file").write_text("x")
  (root / "here" / "loop").symlink_to("loop")
  hostile_folders.prepare(root / "here", scratch, arguments)
  # The difference of two listings shows every path created by the try. A spoilt run may be changed by the next one.
  own = [path for path in (root / "here").glob("done-*")]
  skipped = [scratch / "compiled", root / "cache", *own]
  before, contents = _listing(scratch), hostile_folders.digest(scratch, skipped)
  child = context.Process(target=fuzz_child.run, args=(arguments, root, scratch / "compiled", whole))
  child.start()
  child.join(timeout)
  if child.exitcode is None:
    # SIGKILL, because a hanging child may ignore other signals.
    child.kill()
    child.join()
    return None, f"still running after {timeout:.0f} s"
  allowed = [root / "cache", root / fuzz_child.ACCEPTED, root / "stdout", root / "stderr", scratch / "compiled"]
  after = hostile_folders.digest(scratch, skipped)
  if changed := [path for path, content in contents.items() if after.get(path) != content]:
    return child.exitcode, f"files of others were changed or removed: {sorted(map(str, changed))[:5]}"
  return child.exitcode, find_problem(child.exitcode, arguments, root, _listing(scratch) - before, allowed)


def find_problem(status: int, arguments: list[str], root: Path, new: set[Path], allowed: list[Path]) -> str:
  """Returns the problem of a finished try, or "".

  Args:
    status: exit status.
    arguments: the command line without the program.
    root: folder of the try, with stdout, stderr and the working directory `here`.
    new: paths created by the try.
    allowed: legal places of new paths besides the folder of the run.
  """
  # Undecodable bytes must not stop the drill.
  errors = (root / "stderr").read_text(encoding="utf-8", errors="replace")
  folder = run_folder(arguments, root / "here", new)
  if status in (2, 3):
    # A damaged checkpoint is moved aside with a warning before the error.
    errors = re.sub(r"\A(warning: [^\n]*\n)+", "", errors)
    if not (errors.startswith("error: ") and len(errors.splitlines()) == 1 and errors.endswith("\n")):
      return f"status {status} with this on stderr: {errors[-3000:]!r}"
  elif status != 0:
    return f"status {status}, with this on stderr: {errors[-3000:]}"
  # A background thread can print a traceback although the command succeeds.
  elif "Traceback" in errors:
    return f"status 0 with a traceback: {errors[-3000:]}"
  elif (root / fuzz_child.ACCEPTED).exists():
    pass
  elif not folder or not ((folder / "report.html").is_file() or list(folder.glob("image*.png"))):
    return f"status 0 without report.html or image*.png in {folder}"
  places = [*allowed, folder] if folder else allowed
  # Parents of the run folder are created with the folder and are legal.
  stray = [path for path in new if not any(path.is_relative_to(place) for place in places)
           and not (folder and folder.is_relative_to(path))]
  if stray:
    return f"new paths outside the folder of the run: {sorted(map(str, stray))[:5]}"
  # Atomic writes leave a temporary name behind only after a crash; the lock file is hidden and stays.
  partial = [path for path in new if folder and path.is_relative_to(folder) and (".tmp" in path.suffixes or
          path.name.startswith(".") and path.name != lock.FILE_NAME or "orbax-checkpoint-tmp" in path.name)]
  return f"partial files: {sorted(map(str, partial))[:5]}" if partial else ""


def run_folder(arguments: list[str], here: Path, new: set[Path]) -> Path | None:
  """Returns the folder of the run, or None.

  Args:
    arguments: the command line without the program.
    here: working directory of the run.
    new: paths created by the run; without a folder in the arguments, the run creates runs/<name>.
  """
  flags = {"--workdir": "", "--config.workdir": ""}
  flags |= {name: value for name, _, value in (word.partition("=") for word in arguments) if name in flags}
  chosen = flags["--workdir"] or flags["--config.workdir"]
  if chosen == "~" or chosen.startswith("~/"):
    return Path(os.path.normpath(here.parent / "home" / chosen[2:]))
  if chosen:
    return None if "\0" in chosen else Path(os.path.normpath(here / chosen))
  return next((path for path in new if path.parent == here / "runs"), None)


def _listing(folder: Path) -> set[Path]:
  paths = set()
  for place, folders, files in os.walk(folder):
    if Path(place) == folder:  # the shared compilation cache is not part of a try
      folders[:] = [name for name in folders if name != "compiled"]
    paths |= {Path(place) / name for name in (*folders, *files)}
  return paths


if __name__ == "__main__":
  sys.exit(main())
