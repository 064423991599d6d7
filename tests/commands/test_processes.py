"""Several processes: two of two devices each make what one of four makes by pmap; process 0 alone writes."""
import json
import os
import socket

import jax
import numpy as np
import pytest

from sds_jax import hosts
from sds_jax.io.checkpoints import Checkpoints

TEXT = "--config=configs/text.py"
FOUR = ["--config.training.views=4", "--config.training.steps=20", "--config.training.log_every=5",
        "--config.parallel.devices=4", "--config.export.mesh=False", "--config.export.turntable=False"]
UNKNOWN = ["--config.prompt=a hamburger", "--config.prior.allow_unknown_words=True"]


def devices(count):
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
  return {"XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": str(count)}


def finish(*processes):
  ends = []
  for process in processes:
    out, err = process.communicate(timeout=280)
    ends.append((process.returncode, out, err))
  return ends


def final(folder):
  with Checkpoints(folder / "checkpoints") as checkpoints:
    step = checkpoints.latest_step()
    return step, jax.device_get(checkpoints.restore(step, checkpoints.abstract_state(step)))


@pytest.fixture(scope="module")
def pair(start, tiny_flags, tmp_path_factory):
  """(folder, [(status, stdout, stderr) of process 0, of process 1]) of a finished run of two processes."""
  folder = tmp_path_factory.mktemp("runs") / "two"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  join = [f"--coordinator=localhost:{port}", "--num_processes=2"]
  flags = [*tiny_flags, *FOUR, *UNKNOWN, f"--workdir={folder}", *join]
  return folder, finish(*[start(*flags, f"--process_id={number}", **devices(2)) for number in (0, 1)])


def test_two_processes_are_one(command, pair, tiny_flags, tmp_path):
  folder, ((status, out, err), (other_status, other_out, other_err)) = pair
  assert status == 0 and other_status == 0, err + other_err
  assert "for 4 devices by jit" in out and "done in" in out and "step/s" in err
  assert "done in" not in other_out and "step/s" not in other_err and "Traceback" not in err + other_err
  assert (folder / "report.html").exists()
  assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [5, 10, 15, 20]

  pmap = "--config.parallel.mode=pmap"
  status, _, err = command(TEXT, *tiny_flags, *FOUR, *UNKNOWN, pmap, f"--workdir={tmp_path / 'one'}")
  assert status == 0, err
  (step, one), (other_step, two) = final(tmp_path / "one"), final(folder)
  assert step == other_step == 20
  for a, b in zip(jax.tree.leaves(one["params"]), jax.tree.leaves(two["params"]), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-12))


def test_unknown_words_go_on_if_asked(pair):
  folder, ((status, _, err), _) = pair
  assert status == 0, err
  assert json.loads((folder / "config.json").read_text())["config"]["prompt"] == "a hamburger"
  assert (folder / "report.html").exists() and not (folder / "mesh.glb").exists()


def test_views_that_cannot_be_spread_are_told_before_anything_is_loaded(command, tiny_flags, tmp_path):
  status, _, err = command(TEXT, *tiny_flags, "--config.parallel.devices=0", "--config.training.views=3",
                           "--config.prior.path=/nowhere", f"--workdir={tmp_path / 'run'}")
  assert status == 2 and err.count("\n") == 1
  assert "config.training.views=3 cannot be spread evenly over the 8 devices" in err


@pytest.mark.parametrize("flags", [["--coordinator=localhost:1"], ["--num_processes=2"],
                                   ["--coordinator=localhost", "--num_processes=2", "--process_id=0"],
                                   ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]])
def test_flags_that_do_not_go_together(command, tiny_flags, tmp_path, flags):
  status, _, err = command(TEXT, *tiny_flags, *flags, f"--workdir={tmp_path / 'run'}")
  assert status == 2 and err.count("\n") == 1 and "HOST:PORT of process 0" in err
  assert not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize("environment, expected", [
    ({}, False), ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # of an allocation, but not within srun
    ({"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_NUM_TASKS": "4"}, True),
    ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True), ({"TPU_WORKER_HOSTNAMES": "localhost"}, False)], ids=str)
def test_launchers_are_recognised(environment, expected):
  assert hosts.has_launcher(environment) == expected


def test_one_process_agrees_with_itself():
  assert hosts.is_first() and hosts.any_process(True) and not hosts.any_process(False) and hosts.shut_down()
  tree = dict(a=np.ones(2))
  assert hosts.broadcast(tree) is tree
  hosts.raise_on_all(None)
  with pytest.raises(OSError, match="mine"):
    hosts.raise_on_all(OSError("mine"))
