"""The drill that kills runs: some runs find nothing, and what it looks at would show what is wrong."""
import json

import numpy as np
import pytest

from sds_jax.drills import kill
from sds_jax.drills.killed_run import INTERVAL, LOG, STEPS
from sds_jax.io.checkpoints import Checkpoints

RUNS = 20
"""Each takes some three starts of a process, of one to two seconds."""


def test_killed_runs_end_as_if_nothing_had_been():
  shown = []
  counts = kill.drill(RUNS, seed=0, job="walk", show=shown.append)
  assert counts["wrong"] == 0 and counts["runs"] == RUNS, "\n".join(shown)
  assert counts["kills"] >= RUNS and counts["kills inside a save"] >= 1 and counts["starts that went on"] >= RUNS
  assert 0 < counts["largest loss in steps"] <= INTERVAL


@pytest.fixture
def ended(tmp_path):
  """The folder of a run that has ended well, and the bits that it should have."""
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(dict(step=step)) + "\n" for step in range(1, STEPS + 1)))
  (tmp_path / LOG).write_text("going on from step 3 of x\n")
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(STEPS, dict(x=np.arange(3.0, dtype=np.float32)), {})
  return tmp_path, [np.arange(3.0, dtype=np.float32).tobytes()]


def test_what_has_ended_well(ended):
  assert kill.problems(*ended, [INTERVAL]) == [] and kill.last_step(ended[0]) == STEPS


def test_what_is_wrong_is_noticed(ended):
  folder, reference = ended
  first_line = lambda losses=(0,), bits=reference: [  # noqa: E731
    text.splitlines()[0] for text in kill.problems(folder, bits, list(losses))]
  assert first_line([INTERVAL + 1]) == ["a kill has cost 4 steps"]
  assert first_line(bits=[b"other"]) == ["its final state is another one"]
  (folder / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
  assert first_line() == ["left behind: ['9.orbax-checkpoint-tmp']"]
  (folder / "checkpoints" / "9.orbax-checkpoint-tmp").rmdir()
  (folder / LOG).write_text("warning: the checkpoint of step 3 is damaged\n")
  assert first_line() == ["a checkpoint was taken for damaged"]
  (folder / LOG).unlink()
  (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n{"step": 2')
  assert first_line() == ["metrics.jsonl has the steps 1 1 2"] and kill.last_step(folder) == 1
  (folder / "checkpoints" / str(STEPS) / "record" / "record.json").write_text("{}")
  assert any("cannot be read" in text for text in first_line())
