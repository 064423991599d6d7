"""The order of the rooms, read from the imports; sizes, documentation and annotations of what is public."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sds_jax

ROOT = Path(sds_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVELS = {"types": 0, "schema": 0, "shipped_configs": 0, "compilation": 0, "hosts": 0, "diffusion": 1, "views": 1,
          "testbed": 2, "fields": 2, "rendering": 3, "generators": 3, "priors": 3, "shapeworld": 4, "settings": 4,
          "training": 4, "io": 4, "evaluation": 5, "benchmarks": 5, "commands": 6, "drills": 7}
"""Imports go from a higher number to a lower one, or stay within a room."""
TOP = {"cli", "__init__"}
"""Modules beside the rooms; they may import any room, and no room but the drills imports them."""
COMMANDS = {"testbed/study.py"}
"""Commands that lie in a room and join it with others: they may import any room, and nothing imports them."""
PEERS = {("training", "io"), ("training", "settings")}
"""(from, to): imports between rooms of a level: the loop writes checkpoints and metrics, and takes settings."""
STRANGERS = [("rendering", "priors"), ("priors", "rendering"), ("shapeworld", "training"), ("shapeworld", "rendering"),
             ("diffusion", "priors"), ("diffusion", "fields"),
             ("generators", "priors"), ("generators", "rendering")]
"""Rooms that must not reach each other in any number of steps."""


def room(path):
  return path.relative_to(ROOT).parts[0].removesuffix(".py")


def targets(path):
  """Rooms (or modules beside them) of this package that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are absolute"
      # `from sds_jax import x` may name a room; `from sds_jax.room import x` names it before.
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "sds_jax" and len(parts) > 1:
        yield parts[1]


def reached():
  """Room -> the rooms that its files import."""
  return {name: {target for path in FILES if room(path) == name and not is_command(path) for target in targets(path)}
          for name in LEVELS}


def is_command(path):
  return path.relative_to(ROOT).as_posix() in COMMANDS


def test_every_file_has_a_room():
  assert {room(path) for path in FILES} == set(LEVELS) | TOP


@pytest.mark.parametrize("name", LEVELS)
def test_imports_go_down(name):
  for target in reached()[name] - {name}:
    if target in LEVELS:
      assert LEVELS[target] < LEVELS[name] or (name, target) in PEERS, f"{name} imports {target}"
    else:
      assert (target == "cli" and name == "drills") or (target not in TOP and hasattr(sds_jax, target)), (
        f"{name} imports sds_jax.{target}")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_nothing_imports_a_command(command):
  assert (ROOT / command).is_file()
  package, name = ("sds_jax." + command.removesuffix(".py").replace("/", ".")).rsplit(".", 1)
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        assert f"{package}.{name}" not in [alias.name for alias in node.names], path
      elif isinstance(node, ast.ImportFrom):
        assert node.module != f"{package}.{name}", path
        assert node.module != package or name not in [alias.name for alias in node.names], path


@pytest.mark.parametrize("name, other", STRANGERS)
def test_strangers(name, other):
  direct, seen, todo = reached(), set(), [name]
  while todo:
    new = direct.get(todo.pop(), set()) - seen
    seen |= new
    todo += new
  assert other not in seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_small_files(path):
  text = path.read_text(encoding="utf-8")
  assert len(text.splitlines()) <= 400
  assert len(path.relative_to(ROOT).parts) <= 4
  if path.name != "__init__.py":
    assert "from __future__ import annotations" in text


def public(tree):
  """(name, node) of the public functions, classes and methods of a module."""
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
      yield node.name, node
      if isinstance(node, ast.ClassDef):
        for item in node.body:
          if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            yield f"{node.name}.{item.name}", item


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size and not p.name.startswith("torch_")],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_are_documented_and_annotated(path):
  tree = ast.parse(path.read_text(encoding="utf-8"))
  lacking = [] if ast.get_docstring(tree) else ["the module's docstring"]
  for name, node in public(tree):
    if not ast.get_docstring(node):
      lacking.append(f"{name}: docstring")
    if isinstance(node, ast.FunctionDef):
      arguments = [a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                   if a.arg not in ("self", "cls") and a.annotation is None]
      lacking += [f"{name}: annotation of {a.arg}" for a in arguments]
      if node.returns is None:
        lacking.append(f"{name}: return annotation")
  assert not lacking


def test_only_the_peer_imports_torch():
  for path in FILES:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    foreign = {name.split(".")[0] for name in names} & {"torch", "diffusers", "transformers"}
    assert not foreign or path.name.startswith("torch_"), (path, foreign)


def test_importing_needs_no_torch_and_starts_nothing():
  """All modules but the PyTorch peer's come in where torch and the like are missing, and start no backend.

  They are made missing here, since tensorboardX imports torch wherever it is installed.
  """
  modules = [".".join(("sds_jax", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES
             if path.name != "__init__.py" and not path.name.startswith("torch_")]
  script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "transformers", "tensorflow"]))
for name in {modules!r}:
  importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                        env={**os.environ, "PYTHONPATH": str(ROOT.parent)})
  assert done.returncode == 0, done.stderr[-2000:]
