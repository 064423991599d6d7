"""The kill drill: real runs without problems, and detection of every problem."""
import json

import numpy as np
import pytest

from sds_jax.drills import kill
from sds_jax.drills.killed_run import INTERVAL, LOG, STEPS
from sds_jax.io.checkpoints import Checkpoints

RUNS = 8
"""A run takes about three starts of a process, of one to two seconds each; the command runs hundreds."""


@pytest.mark.timeout(900)  # starts many processes
def test_killed_runs_end_like_uninterrupted_runs():
  shown = []
  counts = kill.drill(RUNS, seed=0, job="walk", show=shown.append)
  assert counts["wrong"] == 0 and counts["runs"] == RUNS, "\n".join(shown)
  assert counts["kills"] >= RUNS and counts["kills inside a save"] >= 1 and counts["starts that went on"] >= RUNS
  assert 0 < counts["largest loss in steps"] <= INTERVAL


@pytest.fixture
def ended(tmp_path):
  """Builds the folder of a right run; returns the folder and its final bits."""
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(dict(step=step)) + "\n" for step in range(1, STEPS + 1)))
  (tmp_path / LOG).write_text("going on from step 3 of x\n")
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(STEPS, dict(x=np.arange(3.0, dtype=np.float32)), {})
  return tmp_path, [np.arange(3.0, dtype=np.float32).tobytes()]


def test_a_right_run_has_no_problems(ended):
  assert kill.find_problems(*ended, [INTERVAL]) == [] and kill.last_step(ended[0]) == STEPS


def test_problems_are_detected(ended):
  folder, reference = ended
  first_line = lambda losses=(0,), bits=reference: [  # noqa: E731
    text.splitlines()[0] for text in kill.find_problems(folder, bits, list(losses))]
  assert first_line([INTERVAL + 1]) == ["a kill has cost 4 steps"]
  assert first_line(bits=[b"other"]) == ["the final state differs from an uninterrupted run"]
  (folder / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
  assert first_line() == ["temporary folders left: ['9.orbax-checkpoint-tmp']"]
  (folder / "checkpoints" / "9.orbax-checkpoint-tmp").rmdir()
  (folder / LOG).write_text("warning: the checkpoint of step 3 is damaged\n")
  assert first_line() == ["a checkpoint was reported as damaged"]
  (folder / LOG).unlink()
  (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n{"step": 2')
  assert first_line() == ["metrics.jsonl has the steps 1 1 2"] and kill.last_step(folder) == 1
  (folder / "checkpoints" / str(STEPS) / "record" / "record.json").write_text("{}")
  assert any("cannot be read" in text for text in first_line())
