"""The examples in the docstrings of the room run."""
import doctest
import importlib
import pkgutil

import pytest

import sds_jax.diffusion

MODULES = [module.name for module in pkgutil.iter_modules(sds_jax.diffusion.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
  result = doctest.testmod(importlib.import_module(f"sds_jax.diffusion.{name}"))
  assert result.failed == 0
  if name == "distillation":
    assert result.attempted > 5
