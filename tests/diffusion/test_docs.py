"""Every public function of the two rooms for other people's code has an example, and the examples run."""
import ast
import doctest
import importlib
import pathlib

import pytest

import sds_jax

ROOT = pathlib.Path(sds_jax.__file__).parent
EXACT = ("laws", "denoisers", "divergence")
"""Modules of the test bed that estimators are invented with; the others make the study."""
MODULES = [f"diffusion.{path.stem}" for path in sorted((ROOT / "diffusion").glob("[a-z]*.py"))] + [
  f"testbed.{name}" for name in EXACT]
DATA = {"DistillationAux", "Guided", "Mixture"}
"""Classes that are made by functions with examples."""


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
  result = doctest.testmod(importlib.import_module(f"sds_jax.{name}"))
  assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
  tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
  public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and not node.name.startswith("_") and node.name not in DATA]
  assert not [node.name for node in public if ">>> " not in (ast.get_docstring(node) or "")]
