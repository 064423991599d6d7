"""The order of the folders and modules, read from the imports; sizes, names, documentation, annotations."""
import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sds_jax
from sds_jax.diffusion.estimators import ESTIMATORS

ROOT = Path(sds_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVELS = {"names": -1, "terminal": -1, "types": 0, "prng": 0, "schema": 0, "compilation": 0, "hosts": 0,
          "shipped_configs": 0, "diffusion": 1, "views": 1, "testbed": 2, "fields": 2, "rendering": 3, "priors": 3,
          "settings": 4, "shapeworld": 4, "io": 4, "generators": 5, "training": 6, "tasks": 7, "evaluation": 8,
          "commands": 9, "benchmarks": 10, "drills": 10}
"""Folder or module -> level. Imports between folders go from a higher level to a lower one."""
TOP = {"__init__"}
COMMANDS = {"testbed/study.py"}
"""Commands that lie in a folder and join it with others: they may import any folder, and nothing imports them."""
STRANGERS = [("rendering", "priors"), ("priors", "rendering"), ("shapeworld", "training"), ("shapeworld", "rendering"),
             ("diffusion", "priors"), ("diffusion", "fields"), ("settings", "training"), ("generators", "training")]
"""Folders that must not reach each other in any number of steps."""
PRINCIPLES = dict(longest_file=400, longest_function=100, depth=3, takers_of_the_tree=10,
                  files_that_name_an_estimator=2)
TREES = {"Text3D", "Image3D", "Image2D"}
"""The settings of a whole task; most functions take one group of them."""


def module_name(path):
  return ".".join(("sds_jax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def parse(path):
  return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
  """Modules of this package that a file imports, anywhere in it, also within functions."""
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are absolute"
      # `from sds_jax.folder import x` imports a module x, or a name of the folder's __init__.
      names = [name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names]
    else:
      continue
    yield from (name for name in names if name in MODULES)


GRAPH = {name: {target for target in imported(path) if target != name} for name, path in MODULES.items()}


def folder(name):
  return name.split(".")[1] if "." in name else "__init__"


def is_command(path):
  return path.relative_to(ROOT).as_posix() in COMMANDS


def reached():
  """Folder -> the folders that its files import."""
  return {name: {folder(target) for module, targets in GRAPH.items() if folder(module) == name
                 and not is_command(MODULES[module]) for target in targets} for name in LEVELS}


def test_every_file_has_a_level():
  assert {folder(name) for name in MODULES} <= set(LEVELS) | TOP


@pytest.mark.parametrize("name", LEVELS)
def test_imports_go_down(name):
  for target in reached().get(name, set()) - {name, "__init__"}:
    assert LEVELS[target] < LEVELS[name], f"{name} imports {target}"


def test_no_cycle_between_modules():
  """Imports within functions count as well, so that none hides a cycle. A package's __init__ only collects names."""
  graph = {name: {t for t in targets if t != "sds_jax"} for name, targets in GRAPH.items() if name != "sds_jax"}
  done, path = set(), []

  def visit(name):
    if name in path:
      pytest.fail("cycle: " + " -> ".join([*path[path.index(name):], name]))
    if name in done:
      return
    path.append(name)
    for target in sorted(graph[name]):
      visit(target)
    done.add(path.pop())

  for name in sorted(graph):
    visit(name)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_nothing_imports_a_command(command):
  assert (ROOT / command).is_file()
  name = module_name(ROOT / command)
  assert not [module for module, targets in GRAPH.items() if name in targets]


@pytest.mark.parametrize("name, other", STRANGERS)
def test_strangers(name, other):
  direct, seen, todo = reached(), set(), [name]
  while todo:
    new = direct.get(todo.pop(), set()) - seen
    seen |= new
    todo += new
  assert other not in seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_small_files_and_functions(path):
  text = path.read_text(encoding="utf-8")
  assert len(text.splitlines()) <= PRINCIPLES["longest_file"]
  assert len(path.relative_to(ROOT).parts) <= PRINCIPLES["depth"]
  if path.name != "__init__.py":
    assert "from __future__ import annotations" in text
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < PRINCIPLES["longest_function"], f"{path}: {node.name}"


def public_classes():
  for path in FILES:
    for node in parse(path).body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        yield node.name, path.relative_to(ROOT).as_posix()


def test_no_two_public_classes_of_one_name():
  places = {}
  for name, path in public_classes():
    places.setdefault(name, []).append(path)
  # The options of each estimator are the class Options of its file.
  assert {name: paths for name, paths in places.items() if len(paths) > 1 and name != "Options"} == {}


def takers_of_the_tree():
  """Functions that take the settings of a whole task."""
  for path in FILES:
    for node in ast.walk(parse(path)):
      if isinstance(node, ast.FunctionDef):
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
          annotation = ast.unparse(argument.annotation) if argument.annotation else ""
          whole = TREES & set(annotation.replace("|", " ").split()) or (
            argument.arg in ("settings", "config") and annotation in ("Any", ""))
          if whole and path.relative_to(ROOT).parts[0] not in ("settings", "schema.py"):
            yield f"{path.relative_to(ROOT)}: {node.name}"


def test_few_functions_take_the_settings_of_a_whole_task():
  takers = sorted(set(takers_of_the_tree()))
  assert len(takers) <= PRINCIPLES["takers_of_the_tree"], takers


@functools.cache
def texts_in(path):
  """Returns the constants of a file."""
  return {node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)}


def files_that_name(estimator):
  """Files outside of diffusion/estimators that hold the name of an estimator as a text."""
  for path in FILES:
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("diffusion", "estimators"):
      continue
    if estimator in texts_in(path):
      yield "/".join(parts)


WORDS = {"sds", "score"}
"""Estimators whose names are keys of other things, too: a loss, the second network."""


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in WORDS])
def test_an_estimator_is_named_in_few_files(name):
  assert len(list(files_that_name(name))) <= PRINCIPLES["files_that_name_an_estimator"], list(files_that_name(name))


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
  tree = parse(path)
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
    tree = parse(path)
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
