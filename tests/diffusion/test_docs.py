"""Every public function and class of `diffusion` has an example, and the examples run."""
import dataclasses
import importlib
import pathlib

import pytest

from sds_jax import diffusion

ROOT = pathlib.Path(diffusion.__file__).parent
MODULES = [".".join(("sds_jax", "diffusion", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
           for path in sorted((*ROOT.glob("[a-z]*.py"), *ROOT.glob("estimators/*.py")))]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, without_example):
  module = importlib.import_module(name)
  assert [public for public in without_example(name) if not is_group(getattr(module, public))] == []


def is_group(public):
  """Tells whether a class is a group of settings, documented by the meaning of its fields."""
  return dataclasses.is_dataclass(public) and all("meaning" in field.metadata for field in dataclasses.fields(public))
