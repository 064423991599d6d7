"""Each setting with values of wrong types, and paths that no file can have: the error names that very setting."""
import pytest

from sds_jax import schema, settings, tasks
from sds_jax.commands import flags

FILES = {"text3d": "configs/text.py", "image3d": "configs/image.py", "image2d": "configs/image2d.py"}
SETTINGS = [(task, row.name) for task, tree in settings.TREES.items() for row in schema.describe(tree()) if row.legal]
GROUPS = [(task, row.name) for task, tree in settings.TREES.items() for row in schema.describe(tree()) if not row.legal]


@pytest.mark.parametrize("task", FILES)
def test_wrong_types_in_a_file(task):
  tree = settings.TREES[task]()
  config = schema.to_config(tree)
  for name in [name for other, name in SETTINGS if other == task]:
    *groups, last = name.split(".")
    group = config
    for part in groups:
      group = group[part]
    with group.ignore_type():
      before, group[last] = group[last], {"a": 1}  # which becomes a ConfigDict, whose repr has several lines
      with pytest.raises(settings.ConfigError) as caught:
        schema.read(tree, config)
      group[last] = before
    message = str(caught.value)
    assert message.startswith(f"config.{name}=") and "it must be" in message and "\n" not in message, message


# A command line is read in some 30 ms, so not every setting with every value.
@pytest.mark.parametrize("task, name", SETTINGS[::11])
def test_wrong_types_on_the_command_line(task, name):
  wrong = "(" if isinstance(_default(task, name), str) else "abc"
  try:
    settings.validate(flags.parse(["run.py", f"--config={FILES[task]}", f"--config.{name}={wrong}"]).config)
  except ValueError as error:
    assert str(error).startswith(f"config.{name}="), error
  else:
    assert isinstance(_default(task, name), (str, tuple))  # texts, which may be any


def _default(task, name):
  value = settings.TREES[task]()
  for part in name.split("."):
    value = getattr(value, part)
  return value


@pytest.mark.parametrize("task, name", GROUPS[::6])
@pytest.mark.parametrize("value", ["{}", "1", "{'name': 'x'}"])
def test_a_group_has_no_value(task, name, value):
  expected = f"config.{name}=.* is not legal: config.{name} is a group of settings"
  with pytest.raises(settings.ConfigError, match=expected):
    flags.parse(["run.py", f"--config={FILES[task]}", f"--config.{name}={value}"])


@pytest.mark.parametrize("name", ["prior.path", "prior.name", "prompts_file", "distillation.source", "image"])
@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a" * 255 + ".safetensors", "/proc/self/mem"],
                         ids=["long", "deep", "weights", "memory"])
def test_paths_of_no_file(name, path, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  task = "image3d" if name == "image" else "text3d"
  arguments = ["run.py", f"--config={FILES[task]}", f"--config.{name}={path}"]
  arguments += ["--config.training.views=8"]  # as many as the devices of the tests
  arguments += ["--config.distillation.estimator=dds"] * (name == "distillation.source")
  with pytest.raises(ValueError) as caught:  # of which OSError is none
    one = tasks.of(settings.validate(flags.parse(arguments).config))
    one.read_inputs()
    one.check()
  assert path[:100] in str(caught.value) and "\n" not in str(caught.value)
