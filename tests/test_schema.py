"""The walker over typed settings: names, types, ranges, relations, and the forms that a value may have."""
import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from sds_jax import schema
from sds_jax.schema import AUTO, ConfigError, group, one_of, or_auto, scheduled, setting, span, whole

NAMES = ["a", "b"]


@dataclasses.dataclass(frozen=True)
class Lens:
  """A lens."""
  fov: tuple[float, float] = setting((40.0, 50.0), span(5.0, 150.0), "degrees")
  name: str = setting("a", one_of(NAMES), "a name")

  def relations(self, path):
    if self.fov[0] == self.fov[1]:
      yield f"{path}.fov={self.fov!r} is no range"


@dataclasses.dataclass(frozen=True)
class Tree:
  """A tree."""
  count: int = setting(3, whole(1, 10), "how many")
  weight: schema.Scheduled = setting(1.0, scheduled(0.0), "a weight")
  scale: schema.Scheduled | str = setting(AUTO, or_auto(scheduled(0.0, 9.0)), "a scale")
  folder: str = setting("", schema.folder(), "a folder")
  text: str = setting("", schema.sentence(), "a text")
  lens: Lens = group(Lens)

  def relations(self, path):
    if self.count == 7:
      yield f"{path}.count=7 is unlucky"


def changed(**changes):
  config = schema.to_config(Tree())
  for name, value in changes.items():
    target = config.lens if name in ("fov", "name") else config
    with target.ignore_type():
      target[name] = value
  return config


def test_a_tree_is_read_back():
  assert schema.read(Tree(), changed()) == Tree() and hash(Tree()) == hash(schema.read(Tree(), changed()))


@pytest.mark.parametrize("given, value", [
  (2, 2.0), (2.5, 2.5), ((2,), 2.0), ([2], 2.0), (((0, 1), (1, 2)), ((0, 1), (1, 2))), ([[0, 1]], ((0, 1),))])
def test_scheduled_numbers(given, value):
  assert schema.read(Tree(), changed(weight=given)).weight == value


@pytest.mark.parametrize("given", [
  (), "1", True, None, {}, (1.0, 2.0), ((0.5, 1), (0.2, 1)), ((0.0, -1),), ((1.5, 1),), math.nan, math.inf, 10**400])
def test_what_no_scheduled_number_is(given):
  with pytest.raises(ConfigError, match="config.weight=.* is not legal: it must be a constant v or points"):
    schema.read(Tree(), changed(weight=given))


@pytest.mark.parametrize("given, value", [("auto", AUTO), ((), AUTO), ([], AUTO), (3, 3.0), ((3.0,), 3.0)])
def test_open_values(given, value):
  assert schema.read(Tree(), changed(scale=given)).scale == value


@pytest.mark.parametrize("changes, message", [
  (dict(count="3"), "config.count='3' is of type str: it must be of type int, such as 3"),
  (dict(count=True), "is of type bool"),
  (dict(count=11), "config.count=11 is not legal: it must be a whole number from 1 to 10"),
  (dict(fov=(50.0, 40.0)), r"config.lens.fov=\(50.0, 40.0\) is not legal: it must be \(smallest, largest\)"),
  (dict(fov=("a", "b")), "config.lens.fov="),
  (dict(lens=3), "config.lens=3 is not legal: it must be a group of settings, config.lens.fov and so on"),
  (dict(scale="big"), "config.scale='big' is not legal: it must be auto, or a constant v or points"),
  (dict(text="\ud800"), "lone surrogate"),
  (dict(fov=(40.0, 40.0)), r"config.lens.fov=\(40.0, 40.0\) is no range"),
  (dict(count=7), "config.count=7 is unlucky"),
  (dict(cuont=1), "config.cuont is not a setting; did you mean config.count?"),
  (dict(name="c"), "config.lens.name='c' is not legal: it must be one of a, b$")])
def test_mistakes(changes, message):
  with pytest.raises(ConfigError, match=message):
    schema.read(Tree(), changed(**changes))


def test_folders_need_not_be_text():
  assert schema.read(Tree(), changed(folder="\udcff")).folder == "\udcff"


def test_names_may_grow():
  NAMES.append("c")
  try:
    assert schema.read(Tree(), changed(name="c")).lens.name == "c"
    with pytest.raises(ConfigError, match="one of a, b, c"):
      schema.read(Tree(), changed(name="d"))
  finally:
    NAMES.remove("c")


def test_relations_can_wait():
  tree = schema.read(Tree(), changed(count=7), relations=False)
  with pytest.raises(ConfigError, match="unlucky"):
    schema.check_relations(tree)


def test_missing_names():
  config = changed()
  del config.lens["fov"]
  with pytest.raises(ConfigError, match="config.lens.fov is missing"):
    schema.read(Tree(), config)


def test_unknown_names_within_a_group():
  config = changed()
  config.lens.fow = 1
  with pytest.raises(ConfigError, match="^config.lens.fow is not a setting; did you mean config.lens.fov?"):
    schema.read(Tree(), config)
  with pytest.raises(ConfigError, match="config.count.x is not a setting; config.count has no settings inside"):
    schema.check_name("count.x", Tree())


def test_changes_and_descriptions():
  tree = schema.replaced(Tree(), {"lens.name": "b", "count": 4})
  assert (tree.lens.name, tree.count, tree.weight) == ("b", 4, 1.0)
  rows = {row.name: row for row in schema.describe(tree)}
  assert rows["lens"].meaning == "A lens." and rows["lens.name"] == ("lens.name", "b", "one of a, b", "a name")
  assert schema.to_dict(tree)["lens"] == dict(fov=(40.0, 50.0), name="b")
  assert isinstance(schema.to_config(tree).lens, ConfigDict)
