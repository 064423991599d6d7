"""How much memory loading a component takes at its peak, beside what its parameters take.

    python tests/priors/measure_loading.py FOLDER KIND DTYPE

FOLDER is a component's folder, or a single-file checkpoint whose component KIND is (`unet`, say).

The command prints JSON, in bytes: `params`, on the device; `largest`, of them; `grown`, the most private memory of the
process beyond what it had before; `peak`, the same with the pages of the files (mapped: the system takes them back at
need). On a CPU the device's memory is the process's own.
"""
import json
from pathlib import Path
import re
import sys
import threading
import time


def memory():
  """(private, all) memory of this process that is resident, in bytes."""
  with open("/proc/self/status", encoding="ascii") as file:
    status = dict(re.findall(r"(\w+):\s+(\d+) kB", file.read()))
  return 1024 * int(status["RssAnon"]), 1024 * int(status["VmRSS"])


def measure(folder, kind, dtype):
  """Loads as `prior.build` does; looks at the memory every millisecond."""
  import jax
  from sds_jax.priors.base import Options
  from sds_jax.priors.from_file import compose
  from sds_jax.priors.loading import checkpoint
  if Path(folder).is_file():
    folder = compose(Path(folder), Options()) / kind
  jax.block_until_ready(jax.device_put(1.0))
  _, places = checkpoint.open_component(folder, kind, dtype)
  before, seen, done = memory(), [], threading.Event()

  def watch():
    while not done.is_set():
      seen.append(memory())
      time.sleep(1e-3)

  watcher = threading.Thread(target=watch)
  watcher.start()
  start = time.time()
  params = checkpoint.load_on_device(places, dtype)
  seconds = time.time() - start
  done.set()
  watcher.join()
  sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
  grown, peak = (max(values) - first for values, first in zip(zip(*seen), before))
  return dict(params=sum(sizes), largest=max(sizes), grown=grown, peak=peak, seconds=seconds)


if __name__ == "__main__":
  print(json.dumps(measure(*sys.argv[1:])))
