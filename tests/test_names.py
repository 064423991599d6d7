"""The nearest names, and the terminal that cannot show a text."""
import io
import sys

import pytest

from sds_jax import names, schema, settings, terminal


def test_examples(without_example):
  assert without_example("sds_jax.names") == []


def test_every_habit_is_of_a_setting():
  known = {row.name for tree in settings.TREES.values() for row in schema.describe(tree())}
  assert set(names.HABITS) <= known


@pytest.mark.parametrize("task", settings.TREES)
def test_habits_of_each_task_lead_to_its_settings(task):
  known = [row.name for row in schema.describe(settings.TREES[task]())]
  for name, words in names.HABITS.items():
    for word in words.split():
      found = names.habitual(word, known)
      assert (found in known) if name in known else (found is None or word in names.HABITS[found].split()), word


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8"])
def test_any_text_is_shown(monkeypatch, encoding):
  text = "\u7ea2\u8272 \U0001f600 \udcff \u2028 caf\u00e9"
  for name in ("stdout", "stderr"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, name, stream)
    terminal.show_any_text()
    print(text, file=stream, flush=True)
    assert stream.buffer.getvalue().decode(encoding).endswith("\n")


def test_streams_that_cannot_be_changed(monkeypatch):
  monkeypatch.setattr(sys, "stdout", None)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  terminal.show_any_text()
