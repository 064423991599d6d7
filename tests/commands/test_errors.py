"""The terminal does not show the errors of a checkpoint's other writes after one write has failed."""
import types

from sds_jax.commands import errors


def test_only_orphaned_writes_are_silent():
  shown = []
  hook = errors.without_orphaned_writes(shown.append)
  for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), ValueError("Event loop is closed")):
    hook(types.SimpleNamespace(exc_value=error))
  assert [str(u.exc_value) for u in shown] == ["other", "Event loop is closed"]
