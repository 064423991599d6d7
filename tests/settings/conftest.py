"""Settings as dotted names, and the settings as they were before they were typed."""
import json
from pathlib import Path

import pytest

from sds_jax import schema, settings

FROZEN = Path(__file__).parent / "frozen_settings.json"
"""Defaults, the changes of recipes, and resolved settings, written by the modules that the typed settings replaced.

There a scheduled constant is [v], and an open value is []. Later changes of a default are made in this file, too.
"""


def flat(settings_, prefix=""):
  """Nested settings as {dotted name: value}."""
  values = {}
  for name, value in settings_.items():
    values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return values


def legal_of(tree, name):
  *groups, last = name.split(".")
  for group in groups:
    tree = getattr(tree, group)
  return next(field for field in schema.dataclasses.fields(tree) if field.name == last).metadata["legal"]


def tuples(value):
  return tuple(map(tuples, value)) if isinstance(value, list) else value


@pytest.fixture(scope="session")
def stored():
  """The contents of FROZEN."""
  return json.loads(FROZEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def frozen(stored):
  """What -> task (or kind of prior) -> ...: values in today's form."""
  trees = {task: tree() for task, tree in settings.TREES.items()}

  def modern(tree, values):
    return {name: legal_of(tree, name).convert(tuples(value)) for name, value in values.items()}

  return dict(
    defaults={task: modern(trees[task], values) for task, values in stored["defaults"].items()},
    words={task: {words: modern(trees[task], values) for words, values in of_words.items()}
           for task, of_words in stored["words"].items()},
    resolved={kind: {name: modern(trees["text3d"].distillation, values) for name, values in of_names.items()}
              for kind, of_names in stored["resolved"].items()})


@pytest.fixture(scope="session")
def flatten():
  """(a tree, or a ConfigDict) -> {dotted name: value}."""
  return lambda tree: flat(schema.to_dict(tree) if schema.is_group(tree) else tree.to_dict())


@pytest.fixture(scope="session")
def changed():
  """({dotted name: value}, task) -> the defaults of the task with these values, whatever their types."""
  def change(changes, task="text3d"):
    config = settings.defaults(task)
    for field, value in changes.items():
      *groups, last = field.split(".")
      group = config
      for name in groups:
        group = group[name]
      with group.ignore_type():
        group[last] = value
    return config

  return change


@pytest.fixture(scope="session")
def mistake():
  """(config) -> the message of the first mistake in it."""
  def first(config):
    with pytest.raises(settings.ConfigError) as caught:
      settings.validate(config)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 + 10_001
    return message

  return first
