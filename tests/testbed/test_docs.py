"""Every public function and class of the test bed has an example, and the examples run."""
import pathlib

import pytest

from sds_jax import testbed

MODULES = sorted(path.stem for path in pathlib.Path(testbed.__file__).parent.glob("[a-z]*.py"))
COMMANDS = {"study": ["main"]}
"""Commands: their docstrings show a shell command instead of an example."""


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, without_example):
  assert without_example(f"sds_jax.testbed.{name}") == COMMANDS.get(name, [])
