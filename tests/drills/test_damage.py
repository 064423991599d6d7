"""The drill with damaged checkpoints reports no wrong outcome, and detects broken readers."""
import sys

import pytest

from sds_jax.drills import damage
from sds_jax.io import checkpoints, records

SAME, OLDER, WRONG = damage.OUTCOMES


def test_thirty_tries():
  shown = []
  counts = damage.drill(30, seed=0, show=shown.append)
  assert shown == [] and sum(counts.values()) == 30
  assert {kind for kind, _ in counts} == set(damage.KINDS) and {outcome for _, outcome in counts} == {SAME, OLDER}


def test_broken_readers_are_detected(monkeypatch):
  """Tries readers with silent recovery, an exception, and an invented state."""
  monkeypatch.setattr(checkpoints.Checkpoints, "_set_aside", lambda self, step, error: None)
  assert any(outcome == WRONG for _, outcome in damage.drill(15, 0, lambda text: None))
  monkeypatch.setattr(records, "read_record", lambda path, step: 1 / 0)
  shown = []
  assert {outcome for _, outcome in damage.drill(2, 0, shown.append)} == {WRONG} and "ZeroDivisionError" in shown[0]
  monkeypatch.setattr(checkpoints.Checkpoints, "restore_newest", lambda self, like: (damage.NEWER, like))
  assert {outcome for _, outcome in damage.drill(2, 0, lambda text: None)} == {WRONG}


def test_the_command(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["damage", "--tries=3", "--seed=1"])
  with pytest.raises(SystemExit) as stop:
    damage.main()
  assert stop.value.code == 0 and capsys.readouterr().out.endswith("3 tries, 0 wrong\n")
  monkeypatch.setattr(checkpoints.Checkpoints, "restore_newest", lambda self, like: None)
  with pytest.raises(SystemExit) as stop:
    damage.main()
  assert stop.value.code == 1 and "3 tries, 3 wrong" in capsys.readouterr().out
