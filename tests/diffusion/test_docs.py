"""Every public function and class of the room has an example, and the examples run."""
import pathlib

import pytest

from sds_jax import diffusion

MODULES = sorted(path.stem for path in pathlib.Path(diffusion.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, without_example):
  assert without_example(f"sds_jax.diffusion.{name}") == []
