"""What is kept from the terminal: complaints of a checkpoint's other writes after one has failed, and nothing else."""
import types

from sds_jax import cli


def test_only_the_stragglers_are_silent():
  heard = []
  hook = cli._without_stragglers(heard.append)
  for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), ValueError("Event loop is closed")):
    hook(types.SimpleNamespace(exc_value=error))
  assert [str(u.exc_value) for u in heard] == ["other", "Event loop is closed"]
