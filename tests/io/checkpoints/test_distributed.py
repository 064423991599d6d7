"""Checkpoints of a run of two processes: process 0 alone saves, both restore."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import sds_jax

PROGRAM = """
import sys
import jax, numpy as np
import jax.numpy as jnp
number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number, initialization_timeout=30)
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sds_jax.io.checkpoints import Checkpoints

if number == 0:
  state = dict(x=np.arange(6.0, dtype=np.float32), y=jnp.ones(3, jnp.bfloat16), key=jax.random.key(1))
  with Checkpoints(folder, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state, dict(at=step))
    assert checkpoints.steps() == [2, 3]
    checkpoints.delete_after(2)
    (checkpoints._folder / "2" / "record" / "record.json").rename(checkpoints._folder / "2" / "record" / "elsewhere")
    assert checkpoints.restore_newest(state) is None
    checkpoints.save(4, state, {})
    step, back = checkpoints.restore_newest(state)
    assert step == 4 and np.array_equal(back["x"], state["x"]) and np.array_equal(back["y"], state["y"])
    assert (back["key"] == state["key"]).all()
# The other process arrives here at once; a barrier inside the saves above would hang.
multihost_utils.sync_global_devices("saved")
with Checkpoints(folder) as checkpoints:
  whole = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
  sharded = jax.ShapeDtypeStruct((6,), jnp.float32, sharding=whole)
  x = checkpoints.restore(4, dict(checkpoints.abstract_state(4), x=sharded))["x"]
for shard in x.addressable_shards:
  assert np.array_equal(np.asarray(shard.data), np.arange(6.0)[shard.index])
assert len(x.addressable_shards) == 1 and x.shape == (6,)
multihost_utils.sync_global_devices("restored")
print("fine", number)
"""


def test_process_0_alone(tmp_path):
  """Saves, deletes and restores in process 0; then restores in both processes onto all devices."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  root = str(Path(sds_jax.__file__).parents[1])
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": root}
  processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(number), str(port), str(tmp_path / "checkpoints")],
                                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for number in range(2)]
  try:
    ends = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for number, (process, (out, err)) in enumerate(zip(processes, ends)):
    assert process.returncode == 0 and f"fine {number}" in out, err[-3000:]
    assert err.count("warning: the checkpoint of step 2 ") == (number == 0) and "Traceback" not in err, err
